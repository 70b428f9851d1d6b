"""How a conversation becomes token ids. The only place where a prompt is rendered.

One conversation is written as

    prompt                          response
    ------------------------------  ------------------------------
    turns, header of the answer  |  lead, text, end of turn

and both parts are what the template writes for this very conversation: the prompt is what it writes for generation,
and the response is what follows the prompt when the template writes the answered conversation, up to the end of turn.
So a response has its thoughts where the template writes them. Where the prompt is not the beginning of the whole,
generation and training would see different prompts, and the conversation is dropped. So it is where the template leaves
text out or writes it as a thought.

The response is tokenised in context, as what follows the prompt's tokens in the tokens of the whole. Where a token
would straddle the border (which happens only in bare text), the response is tokenised by itself, because generation
cannot take back a prompt's last token. So training sees prompt ids + response ids, and generation begins after the
prompt ids. The tokenizer adds nothing: there is a BOS where the template writes one, or where `chat.add_bos` asks for
one.

`Renderer.encode` is the way from conversations to token ids, and `responses.decode_responses` the way back.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from spin_core.config.model import ChatConfig
from spin_core.data.formats.tools import Tools, ToolSupport
from spin_core.data.formats.values import Row
from spin_core.data.templates.chat_template import ChatTemplate, Input, Rendering, ending
from spin_core.data.templates.frame import ANSWER, Frame, bare_frame, find_frame
from spin_core.data.templates.responses import Ends
from spin_core.data.templates.thoughts import answers_with, prompts_with, thoughts_in
from spin_core.errors import ConfigError, DataError, ModelError

FinishReason = Literal["stop", "length"]

Message = Row
"""One turn: `role` (system, user, assistant, tool), `content`, which is text, and other keys that a template may write,
such as `tool_calls`."""

_THINKING = ("enable_thinking", "thinking")
"""Switches of templates that ask for thoughts."""


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
    refused: str = ""
    """Why the conversation cannot be used, as a reason to count it under; prompt and response are empty then."""
    detail: str = ""
    """What the template says about it."""
    lacks_thought: bool = False
    """The template leaves the response's thoughts out."""


class _Texts(NamedTuple):
    """A prompt and what follows it."""

    prompt: str
    tail: str
    response: str
    """The tail without what the frame adds to it."""
    refused: str = ""
    detail: str = ""


class Renderer:
    """Renders conversations for one tokenizer, and tokenises them."""

    def __init__(self, tokenizer: Any, config: ChatConfig, ends: Sequence[int] = ()) -> None:
        """Find out how the tokenizer's template writes a response.

        Args:
            tokenizer: of the model.
            config: how prompts are written.
            ends: further tokens that end a response, as the model's own settings name them (`model_ends`).

        Raises:
            ConfigError: the template or the format cannot be used.
            ModelError: the tokenizer has no end of sequence.
        """
        self.tokenizer, self.config = tokenizer, config
        if config.template == "format" and "{prompt}" not in config.format:
            raise ConfigError(f"chat.format is {config.format!r}: write {{prompt}} where the prompt goes")
        self._template = None if config.template != "tokenizer" else ChatTemplate.of(tokenizer, config.template_kwargs)
        self.frame = self._find_frame()
        self.ends = self._find_ends(ends)
        """What ends a response: the end of turn, the tokenizer's EOS, and the model's other ends."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return self.ends.ids

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The rendered prompt: the text after which the model is to answer.

        Raises:
            DataError: the template refuses the conversation.
        """
        turns = self._prepare(messages)
        if self._template is None:
            return self._render(turns)
        text, error = self._template.render([Input(turns, True)])[0]
        if error:
            raise DataError(
                f"the chat template refuses the conversation that ends in {ending(turns)!r} ({error}): "
                "fix that row, or set chat.template to format"
            )
        return text + self.added_header

    @property
    def added_header(self) -> str:
        """What is added to a prompt that the template has written: the answer's header, where it leaves that out."""
        # A template that is asked for thoughts lets the model write them; the header may have an empty thought.
        asks_for_thoughts = any(self.config.template_kwargs.get(name) for name in _THINKING)
        return "" if asks_for_thoughts else self.frame.header

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids: what generation is given where the conversation has no response yet."""
        return self._with_bos(self._tokenise([self.prompt_text(messages)]))[0]

    def response_ids(self, messages: Sequence[Message], text: str, cap: int) -> tuple[list[int], FinishReason]:
        """The token ids of a response to `messages`, and whether it is whole or was cut at `cap` tokens."""
        encoded = self.encode([messages], [text], cap)[0]
        return encoded.response_ids, encoded.finish_reason

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        responses: Sequence[str | Message],
        cap: int,
        tools: Sequence[Tools | None] | None = None,
    ) -> list[Encoded]:
        """Render and tokenise a batch of conversations with their responses.

        Args:
            conversations: the turns before each response.
            responses: the responses, each as text or as the assistant's turn.
            cap: responses are cut at this many tokens, the end of turn included.
            tools: the schemas of the tools in each conversation.
        """
        turns = [self._prepare(messages) for messages in conversations]
        answers = [self._answer(response) for response in responses]
        texts = self._texts(turns, answers, tools or [None] * len(turns))
        prompts = self._tokenise([row.prompt for row in texts])
        wholes = self._tokenise([row.prompt + row.tail for row in texts])
        encoded = []
        for messages, answer, row, prompt_ids, whole in zip(turns, answers, texts, prompts, wholes, strict=True):
            is_straddled = whole[: len(prompt_ids)] != prompt_ids
            ids = self._tokenise_alone(row.tail) if is_straddled else whole[len(prompt_ids) :]
            reason: FinishReason = "stop" if len(ids) <= cap else "length"
            lacks_thought = not row.refused and any(thought not in row.tail for thought in thoughts_in(answer))
            encoded.append(
                Encoded(
                    messages=messages,
                    prompt=row.prompt,
                    prompt_ids=prompt_ids,
                    response=row.response,
                    response_ids=ids[:cap],
                    finish_reason=reason,
                    refused=row.refused,
                    detail=row.detail,
                    lacks_thought=lacks_thought,
                )
            )
        whole_prompts = self._with_bos([row.prompt_ids for row in encoded])
        return [row._replace(prompt_ids=ids) for row, ids in zip(encoded, whole_prompts, strict=True)]

    def response_text(self, text: str) -> str:
        """A response without the end of turn that data may have which were rendered before."""
        text = self.clean(text)
        while end := next((end for end in self._end_texts if text.rstrip().endswith(end)), ""):
            text = text.rstrip().removesuffix(end)
        return text

    def clean(self, text: str) -> str:
        """The text; with line breaks as spaces if the tokenizer has no token for a line break."""
        return text if self._knows_newline else re.sub(r"\s*\n\s*", " ", text)

    def has_control_token(self, text: str) -> bool:
        """Whether the tokenizer reads a part of the text as a control token, so that the text could end a turn."""
        return self._control_tokens.search(text) is not None

    @cached_property
    def _end_texts(self) -> list[str]:
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.ends.ids))
        return [text for text in (self.frame.end_of_turn, *tokens) if text]

    @cached_property
    def unknown_id(self) -> int | None:
        """The token for characters outside the vocabulary; None if there is none, or if it has another meaning too."""
        unknown: int | None = self.tokenizer.unk_token_id
        return None if unknown in (*self.stop_ids, self.tokenizer.bos_token_id) else unknown

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn, and still does so once the question is answered."""
        if self._template is None:
            return False
        probe: list[Message] = [{"role": "system", "content": ANSWER}, {"role": "user", "content": "?"}]
        answered: list[Message] = [*probe, {"role": "assistant", "content": "!"}]
        return all(ANSWER in row.text for row in self._template.render([Input(probe, True), Input(answered, False)]))

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
        tokens |= {*self._end_texts}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens)))

    def can_render(self, messages: Sequence[Message], tools: Tools | None) -> bool:
        """Whether the template writes all that a conversation has of tools: schemas, calls and results."""
        return self._tool_support.can_write(self._prepare(messages), tools)

    @cached_property
    def _tool_support(self) -> ToolSupport:
        return ToolSupport(self._write if self._template is not None else None)

    def _write(self, turns: Sequence[Message], tools: Tools | None = None) -> str | None:
        """What the template writes to have an answer; None if it refuses the conversation."""
        assert self._template is not None
        text, error = self._template.render([Input(turns, True, tools)])[0]
        return None if error else text

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        """The turns to render: with the configured system prompt first, unless the conversation has its own.

        Where the template refuses or drops a system turn, it becomes the beginning of the first user turn.
        """
        turns = [self._clean_turn(turn) for turn in messages]
        if self.config.system and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.config.system}, *turns]
        if turns[0]["role"] == "system" and not self.takes_system:
            system, first, *rest = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return self._tool_support.prepare(turns)

    def _answer(self, response: str | Message) -> Message:
        """The assistant's turn to render."""
        turn = self._clean_turn({"content": response} if isinstance(response, str) else response)
        return {**turn, "role": "assistant", "content": self.response_text(turn["content"])}

    def _clean_turn(self, turn: Message) -> Message:
        return {key: self.clean(value) if isinstance(value, str) else value for key, value in turn.items()}

    def _texts(
        self, turns: Sequence[list[Message]], answers: Sequence[Message], tools: Sequence[Tools | None]
    ) -> list[_Texts]:
        """The texts of prompts and responses."""
        if self._template is None:
            prompts = [self._render(messages) for messages in turns]
            contents = [answer["content"] for answer in answers]
            return [
                _Texts(prompt, text + self.frame.closing, text) for prompt, text in zip(prompts, contents, strict=True)
            ]
        inputs = []
        for messages, answer, schemas in zip(turns, answers, tools, strict=True):
            inputs += [Input(messages, True, schemas), Input([*messages, answer], False, schemas)]
        renderings = self._template.render(inputs)
        rows = zip(turns, answers, renderings[::2], renderings[1::2], strict=True)
        return [self._divide(messages, answer, prompt, whole) for messages, answer, prompt, whole in rows]

    def _divide(self, messages: list[Message], answer: Message, prompt: Rendering, whole: Rendering) -> _Texts:
        """Divide what the template writes for an answered conversation into prompt and response."""
        frame, error = self.frame, prompt.error or whole.error
        if error:
            return _Texts("", "", "", "template-refuses", error)
        end = (frame.closing if frame.is_written else "") + frame.rest
        before, tail = prompt.text, whole.text.removeprefix(prompt.text)
        if not whole.text.startswith(before) or not tail.endswith(end):
            return _Texts("", "", "", "template-differs")
        if not (prompts_with(messages, before) and answers_with(answer, before, tail)):
            return _Texts("", "", "", "template-drops-text")
        tail = tail.removesuffix(end) + frame.closing
        if frame.header and tail.startswith(frame.header):
            before, tail = before + frame.header, tail.removeprefix(frame.header)
        return _Texts(before, tail, tail.removeprefix(frame.lead).removesuffix(frame.closing))

    def _render(self, turns: list[Message]) -> str:
        """The prompt for turns that `_prepare` returned, without a template."""
        if self.config.template == "plain":
            return self.clean("\n".join(turn["content"] for turn in turns))
        written = [
            self.config.format.replace("{prompt}", turn["content"])
            if turn["role"] == "user"
            else f"{turn['content']}{self.frame.closing}\n\n"
            for turn in turns
        ]
        return self.clean("".join(written))

    def _find_frame(self) -> Frame:
        if self._template is None:
            return bare_frame(_end_of_sequence(self.tokenizer))
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return find_frame(self._template.render, tokens, lambda: _end_of_sequence(self.tokenizer))

    def _find_ends(self, ends: Sequence[int]) -> Ends:
        known = [id for id in (self.tokenizer.eos_token_id, *ends) if id is not None and id < len(self.tokenizer)]
        end = self.frame.end_of_turn
        if not self.frame.is_token:
            return Ends(tuple(dict.fromkeys(known)), (end,))
        end_id: int = self.tokenizer.convert_tokens_to_ids(end)
        if self._tokenise([self.frame.closing])[0][-1:] != [end_id]:
            raise ModelError(
                f"the tokenizer splits its end of turn {end!r} into pieces: "
                "set model.eos_token to one of its special tokens"
            )
        return Ends(tuple(dict.fromkeys([end_id, *known])))

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


def _end_of_sequence(tokenizer: Any) -> str:
    """The tokenizer's EOS."""
    eos: str | None = tokenizer.eos_token
    if eos is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no response could end: "
            "set model.eos_token to a token of its vocabulary"
        )
    return eos
