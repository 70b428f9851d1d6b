"""How a conversation becomes token ids. The only place where a prompt is rendered.

One conversation is written as

    prompt                          response
    ------------------------------  ------------------------------
    turns, header of the answer  |  lead, text, end of turn

and both parts are found by asking the template itself. The prompt is what the template writes for generation. The
response is tokenised in context, as what follows the prompt's tokens in the tokens of the whole. Where a token would
straddle the border (which happens only in bare text), the response is tokenised by itself, because generation cannot
take back a prompt's last token. So training sees prompt ids + response ids, and generation begins after the prompt ids.
The tokenizer adds nothing: there is a BOS where the template writes one, or where `chat.add_bos` asks for one.

`Renderer.encode` is the way from conversations to token ids, and `decode_responses` the way back.
"""

import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from spin_core.config.model import ChatConfig
from spin_core.data.formats.tools import Tools, ToolSupport
from spin_core.data.formats.values import Row
from spin_core.errors import ConfigError, DataError, ModelError

Message = Row
"""One turn: `role` (system, user, assistant, tool), `content`, which is text, and other keys that a template may write,
such as `tool_calls`."""

FinishReason = Literal["stop", "length"]

# Templates that write today's date would give other token ids tomorrow. Llama 3's own default stands in for it.
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"

_ANSWER = "sentinel answer"
"""A text to recognise again in what a template writes."""


class Frame(NamedTuple):
    """What is written around the text of a response."""

    header: str
    """What the template writes before an answer, beyond its own generation prompt. It belongs to the prompt."""
    lead: str
    """White space that the template puts before the text. It belongs to the response."""
    closing: str
    """What follows the text, up to and including the end of turn."""
    end_of_turn: str
    trims: bool
    """The template strips white space around the text."""


class Encoded(NamedTuple):
    """A prompt and a response as the model sees them."""

    messages: list[Message]
    """The turns before the response as they were rendered, the system prompt included."""
    prompt: str
    """The rendered prompt."""
    prompt_ids: list[int]
    response: str
    response_ids: list[int]
    """At most `cap` tokens, the end of turn among them."""
    finish_reason: FinishReason
    """`stop`: the ids end in the end of turn. `length`: they were cut, and have none."""


class Renderer:
    """Renders conversations for one tokenizer, and tokenises them."""

    def __init__(self, tokenizer: Any, config: ChatConfig) -> None:
        """Find out how the tokenizer's template writes a response.

        Raises:
            ConfigError: the template or the format cannot be used.
            ModelError: the tokenizer has no end of sequence, or its end of turn is not one token.
        """
        self.tokenizer, self.config = tokenizer, config
        if config.template == "format" and "{prompt}" not in config.format:
            raise ConfigError(f"chat.format is {config.format!r}: write {{prompt}} where the prompt goes")
        self._template = _template_source(tokenizer) if config.template == "tokenizer" else ""
        self.frame = self._find_frame()
        self.end_of_turn_id: int = tokenizer.convert_tokens_to_ids(self.frame.end_of_turn)
        if self._tokenise([self.frame.closing])[0][-1:] != [self.end_of_turn_id]:
            raise ModelError(
                f"the tokenizer splits its end of turn {self.frame.end_of_turn!r} into pieces: "
                "set model.eos_token to one of its special tokens"
            )
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in (self.end_of_turn_id, eos) if i is not None))
        """Tokens that end a response: the end of turn, and the tokenizer's EOS if that is another token."""

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        """The turns to render: with the configured system prompt first, unless the conversation has its own.

        Where the template refuses or drops a system turn, it becomes the beginning of the first user turn.
        """
        turns = [{**turn, "content": self.clean(turn["content"])} for turn in messages]
        if self.config.system and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.config.system}, *turns]
        if turns[0]["role"] == "system" and not self._takes_system:
            system, first, *rest = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return self._tool_support.prepare(turns)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The rendered prompt: the text after which the model is to answer."""
        return self._render(self._prepare(messages))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids: what generation is given, and how each training sequence begins."""
        return self._with_bos(self._tokenise([self.prompt_text(messages)]))[0]

    def response_ids(self, messages: Sequence[Message], text: str, cap: int) -> tuple[list[int], FinishReason]:
        """The token ids of a response to `messages`, and whether it is whole or was cut at `cap` tokens."""
        encoded = self.encode([messages], [text], cap)[0]
        return encoded.response_ids, encoded.finish_reason

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        texts: Sequence[str],
        cap: int,
        tools: Sequence[Tools | None] | None = None,
    ) -> list[Encoded]:
        """Render and tokenise a batch of conversations with their responses.

        Args:
            conversations: the turns before each response.
            texts: the responses.
            cap: responses are cut at this many tokens, the end of turn included.
            tools: the schemas of the tools in each conversation.
        """
        turns = [self._prepare(messages) for messages in conversations]
        prompts = [self._render(*row) for row in zip(turns, tools or [None] * len(turns), strict=True)]
        responses = [self.response_text(text) for text in texts]
        tails = [f"{self.frame.lead}{text}{self.frame.closing}" for text in responses]
        wholes = self._tokenise([prompt + tail for prompt, tail in zip(prompts, tails, strict=True)])
        rows = zip(turns, prompts, self._tokenise(prompts), responses, tails, wholes, strict=True)
        encoded = []
        for messages, prompt, prompt_ids, response, tail, whole in rows:
            is_straddled = whole[: len(prompt_ids)] != prompt_ids
            ids = self._tokenise_alone(tail) if is_straddled else whole[len(prompt_ids) :]
            reason: FinishReason = "stop" if len(ids) <= cap else "length"
            encoded.append(Encoded(messages, prompt, prompt_ids, response, ids[:cap], reason))
        whole_prompts = self._with_bos([row.prompt_ids for row in encoded])
        return [row._replace(prompt_ids=ids) for row, ids in zip(encoded, whole_prompts, strict=True)]

    def response_text(self, text: str) -> str:
        """A response without what the frame adds to it. Data that was rendered before may end in an end of turn."""
        text = self.clean(text)
        for token in {self.frame.end_of_turn, self.tokenizer.eos_token} - {None}:
            bare = text.rstrip()
            if bare.endswith(token):
                text = bare.removesuffix(token)
        return text.strip() if self.frame.trims else text

    def clean(self, text: str) -> str:
        """The text; with line breaks as spaces if the tokenizer has no token for a line break."""
        return text if self._knows_newline else re.sub(r"\s*\n\s*", " ", text)

    def has_control_token(self, text: str) -> bool:
        """Whether the tokenizer reads a part of the text as a control token, so that the text could end a turn."""
        return self._control_tokens.search(text) is not None

    @cached_property
    def unknown_id(self) -> int | None:
        """The token for characters outside the vocabulary; None if there is none, or if it has another meaning too."""
        unknown: int | None = self.tokenizer.unk_token_id
        return None if unknown in (*self.stop_ids, self.tokenizer.bos_token_id) else unknown

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes a system turn."""
        if self.config.template != "tokenizer":
            return False
        probe = [{"role": "system", "content": _ANSWER}, {"role": "user", "content": "?"}]
        try:
            return _ANSWER in self._apply(probe, answer=True)
        except TemplateError:
            return False

    @cached_property
    def _knows_newline(self) -> bool:
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return True
        space, newline = self._tokenise(["a b", "a\nb"])
        return unknown in space or unknown not in newline

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        tokens = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tokens |= {self.frame.end_of_turn}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens)))

    def can_render(self, messages: Sequence[Message], tools: Tools | None) -> bool:
        """Whether the template writes all that a conversation has of tools: schemas, calls and results."""
        return self._tool_support.can_write(self._prepare(messages), tools)

    @cached_property
    def _tool_support(self) -> ToolSupport:
        writes_turns = self.config.template == "tokenizer"
        return ToolSupport(partial(self._apply, answer=True) if writes_turns else None)

    def _render(self, turns: list[Message], tools: Tools | None = None) -> str:
        """The prompt for turns that `_prepare` returned."""
        if self.config.template == "tokenizer":
            try:
                return self._apply(turns, tools, answer=True) + self.frame.header
            except TemplateError as error:
                raise DataError(
                    f"the chat template refuses the conversation that ends in {turns[-1]['content'][-40:]!r} "
                    f"({error}): fix that row, or set chat.template to format"
                ) from error
        if self.config.template == "plain":
            return self.clean("\n".join(turn["content"] for turn in turns))
        written = [
            self.config.format.replace("{prompt}", turn["content"])
            if turn["role"] == "user"
            else f"{turn['content']}{self.frame.closing}\n\n"
            for turn in turns
        ]
        return self.clean("".join(written))

    def _apply(self, messages: list[Message], tools: Tools | None = None, *, answer: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=self._template, tokenize=False, add_generation_prompt=answer
        )
        return text

    def _find_frame(self) -> Frame:
        """Find what the template writes around a response, by rendering one whose text is known."""
        if self.config.template != "tokenizer":
            eos = _end_of_sequence(self.tokenizer)
            return Frame(header="", lead="", closing=eos, end_of_turn=eos, trims=False)
        prompt, whole = self._render_probe()
        before, answer, after = whole.removeprefix(prompt).partition(_ANSWER)
        if not answer:
            raise ConfigError(
                "the chat template leaves an assistant's turn out: set chat.template to format, or fix the template"
            )
        if not whole.startswith(prompt):
            raise ConfigError(
                f"the chat template opens an answer with {prompt[-40:]!r} but writes an answered conversation as "
                f"{whole[:80]!r}, so that generation and training would see different prompts: "
                "set chat.template to format, or fix the template"
            )
        trims = not (before.endswith("\t") and after.startswith("\t"))
        before, after = before.removesuffix("\t"), after.removeprefix("\t")
        # More than white space before the text, such as an empty thought, is a header: generation must not sample it.
        header, lead = (before, "") if before.strip() else ("", before)
        end = after.lstrip()
        gap = after[: len(after) - len(end)]
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        end_of_turn = max((token for token in tokens if end.startswith(token)), key=len, default=None)
        if end_of_turn is None:
            eos = _end_of_sequence(self.tokenizer)
            return Frame(header, lead, closing=eos, end_of_turn=eos, trims=trims)
        return Frame(header, lead, closing=gap + end_of_turn, end_of_turn=end_of_turn, trims=trims)

    def _render_probe(self) -> tuple[str, str]:
        """What the template writes for a question to be answered, and for the same question with its answer."""
        question = [{"role": "user", "content": "?"}]
        # Tabs show whether white space around a response survives.
        answered = [*question, {"role": "assistant", "content": f"\t{_ANSWER}\t"}]
        try:
            return self._apply(question, answer=True), self._apply(answered, answer=False)
        except TemplateError as error:
            raise ConfigError(
                f"the chat template cannot write a question and its answer ({error}): set chat.template to format"
            ) from error

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, with nothing added."""
        try:
            ids: list[list[int]] = self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
        except Exception as error:
            # The library raises no narrower error for a vocabulary that lacks both a character and an unknown token.
            if "UNK" not in str(error):
                raise
            raise DataError(
                "the data hold characters that the tokenizer does not know, and it has no token for unknown ones: "
                "use a model whose tokenizer covers the data"
            ) from error
        return ids

    def _with_bos(self, prompts: list[list[int]]) -> list[list[int]]:
        """Put a BOS before bare text and the format string, unless there is one."""
        bos = self.tokenizer.bos_token_id
        if self.config.template == "tokenizer" or not self.config.add_bos or bos is None:
            return prompts
        return [ids if ids[:1] == [bos] else [bos, *ids] for ids in prompts]

    def _tokenise_alone(self, tail: str) -> list[int]:
        """The ids of a response by itself.

        It is tokenised after an anchor, because some tokenizers put a space before the beginning of a text. An anchor
        serves if it does not merge with the response into one token.
        """
        for anchor in ("\n", ":", "a"):
            (before,), (both,) = self._tokenise([anchor]), self._tokenise([anchor + tail])
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._tokenise([tail])[0]


def decode_responses(
    tokenizer: Any, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> list[str]:
    """Responses as text, without special tokens.

    Each is decoded after its prompt. By itself, a response would lose its first space with many tokenizers.
    """
    wholes = [[*before, *after] for before, after in zip(prompt_ids, response_ids, strict=True)]
    prompts, texts, alone = (
        tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in ([list(ids) for ids in prompt_ids], wholes, [list(ids) for ids in response_ids])
    )
    # Half a character at a prompt's end is written differently once its other half follows. Then the prompt's text is
    # not the beginning of the whole, and the response is decoded by itself.
    return [
        text.removeprefix(prompt) if text.startswith(prompt) else bare
        for prompt, text, bare in zip(prompts, texts, alone, strict=True)
    ]


def _template_source(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template, with a fixed date."""
    try:
        source: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            "the tokenizer has no chat template: set chat.template to plain, or to format with chat.format, "
            "or set model.tokenizer to one that brings a template"
        ) from error
    return _FIXED_DATE + source if "strftime_now" in source else source


def _end_of_sequence(tokenizer: Any) -> str:
    """The tokenizer's EOS."""
    eos: str | None = tokenizer.eos_token
    if eos is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no response could end: "
            "set model.eos_token to a token of its vocabulary"
        )
    return eos
