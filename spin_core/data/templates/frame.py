"""What a template writes around a response, found by rendering responses whose text is known.

    prompt                          response
    ------------------------------  ------------------------------
    turns | header                | lead, text, end of turn        | rest

The template's own generation prompt ends before the header. A header is more than white space, such as the empty
thought that some templates write into every answer without one: it belongs to the prompt, so that generation need not
sample it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from spin_core.data.templates.chat_template import Input, Rendering
from spin_core.data.templates.thoughts import Turn
from spin_core.errors import ConfigError

ANSWER = "sentinel answer"
"""A text to recognise again in what a template writes."""

_THOUGHT = "sentinel thought"

_QUESTION: list[Turn] = [{"role": "user", "content": "?"}]

# Tabs show whether white space around a response survives.
_TEXT = f"\t{ANSWER}\t"

_RESPONSES: tuple[Turn, ...] = (
    {"role": "assistant", "content": _TEXT},
    {"role": "assistant", "content": _TEXT, "reasoning_content": _THOUGHT},
    {"role": "assistant", "content": f"<think>\n{_THOUGHT}\n</think>\n\n{_TEXT}"},
)
"""Responses to try in turn: some templates begin each answer with a thought."""

Render = Callable[[Sequence[Input]], list[Rendering]]


class Frame(NamedTuple):
    """What is written around the text of a response."""

    header: str
    """What the template writes before an answer without thoughts, beyond its own generation prompt."""
    lead: str
    """White space that the template puts before the text. It belongs to the response."""
    closing: str
    """What follows the text, up to and including the end of turn."""
    end_of_turn: str
    rest: str
    """What the template writes after the end of turn."""
    is_written: bool
    """Whether the template writes the end of turn. If not, it is the tokenizer's end of sequence."""
    is_token: bool
    """Whether the end of turn is a token. If not, it is text that the tokenizer splits."""


def bare_frame(eos: str) -> Frame:
    """The frame of a response without a template: it ends in the end of sequence."""
    return Frame(header="", lead="", closing=eos, end_of_turn=eos, rest="", is_written=False, is_token=True)


def find_frame(render: Render, tokens: Iterable[str], eos: Callable[[], str]) -> Frame:
    """The frame of a template.

    Args:
        render: writes conversations with the template.
        tokens: the tokenizer's added tokens: an end of turn is one of them, or text.
        eos: returns the end of sequence, for a template that does not end its answers.

    Raises:
        ConfigError: the template does not write answers as it prompts for them.
    """
    prompt, whole = _render_probe(render)
    before, answer, after = whole.removeprefix(prompt).partition(ANSWER)
    assert answer, "_render_probe looked for it"
    before, after = before.removesuffix("\t"), after.removeprefix("\t")
    header, lead = (before, "") if before.strip() else ("", before)
    if _THOUGHT in header:
        header = ""  # it is a part of that response
    text, end, rest, is_token = _split_end(after, tokens)
    if not end:
        end = eos()
        return Frame(header, lead, end, end, rest=after, is_written=False, is_token=True)
    return Frame(header, lead, text + end, end, rest, is_written=True, is_token=is_token)


def _split_end(after: str, tokens: Iterable[str]) -> tuple[str, str, str, bool]:
    """What follows a response as: what is before the end of turn, the end of turn, the rest; and if that is a token.

    The end of turn is the first token, the longest where several begin there, or else all text that there is.
    """
    places = [(after.find(token), -len(token), token) for token in tokens if token.strip() and token in after]
    if places:
        place, _, token = min(places)
        return after[:place], token, after[place + len(token) :], True
    end = after.strip()
    place = after.find(end) if end else 0
    return after[:place], end, after[place + len(end) :], False


def _render_probe(render: Render) -> tuple[str, str]:
    """What the template writes for a question to be answered, and for the same question with its answer."""
    (prompt, error), *answered = render(
        [Input(_QUESTION, True), *(Input([*_QUESTION, turn], False) for turn in _RESPONSES)]
    )
    if error or answered[0].error:
        raise ConfigError(
            f"the chat template cannot write a question and its answer ({error or answered[0].error}): "
            "set chat.template to format"
        )
    if ANSWER not in answered[0].text.removeprefix(prompt):
        raise ConfigError(
            "the chat template leaves an assistant's turn out: set chat.template to format, or fix the template"
        )
    whole = next(_usable(prompt, answered), None)
    if whole is None:
        raise ConfigError(
            f"the chat template opens an answer with {prompt[-40:]!r} but writes an answered conversation as "
            f"{answered[0].text[:80]!r}, so that generation and training would see different prompts: "
            "set chat.template to format, or fix the template"
        )
    return prompt, whole


def _usable(prompt: str, answered: Iterable[Rendering]) -> Iterator[str]:
    """The renderings that begin with the prompt and hold the answer."""
    for text, error in answered:
        if not error and text.startswith(prompt) and ANSWER in text.removeprefix(prompt):
            yield text
