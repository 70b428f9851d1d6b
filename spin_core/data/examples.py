"""From conversations to examples: rendered, tokenised, and checked against the limits of training.

Phases `prompts` and `preferences` both take this way, so that both have the same token ids for the same texts and drop
a text for the same reasons.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spin_core.data.chat import Encoded, Message, Renderer
from spin_core.data.conversations import Conversation
from spin_core.data.formats.tools import Tools, has_tools
from spin_core.data.formats.values import strings_in
from spin_core.data.templates.responses import decode_responses
from spin_core.errors import DataError

log = logging.getLogger("spin_core")

BATCH = 1024
"""Rows tokenised at a time."""

FIXES = {
    "prompt-too-long": "raise prompts.max_prompt_tokens",
    "no-response": "give rows with an assistant's turn",
    "empty-response": "give rows with a response, or name its column in prompts.columns",
    "empty-prompt": "give rows with a prompt, or name its column in prompts.columns",
    "unknown-character": "use a tokenizer whose vocabulary covers the responses",
    "control-token": "take the chat format's control tokens out of the texts: they are added here",
    "text-too-short": "lower prompts.text_prompt_chars",
    "turns-out-of-order": "let user and assistant take turns, the user first",
    "template-refuses": "give conversations that the chat template can write, or set chat.template to format",
    "template-differs": "set chat.template_kwargs so that its prompts fit the responses (with or without thoughts), or "
    "set chat.template to format",
    "turn-without-content": "give each turn its text, under content with role, or under value with from",
    "two-prompts": "give each prompt in one column, or repeat it in the turns of its response",
    "template-drops-text": "give turns whose only thought is at the beginning, between <think> and </think>, or set "
    "chat.template to format",
    "unknown-role": "use the roles system, user, assistant and tool",
    "not-to-be-learned": "give rows with an assistant's turn whose weight is not 0, or leave the row's column weight, "
    "train or label out in prompts.columns",
    "unclosed-thought": "give responses whose thoughts end with </think>",
    "tool-call": "give rows in which the assistant answers in text",
    "tools-not-in-template": "use a model whose chat template writes tools, their calls and results",
    "not-text": "give turns of text alone",
    "without-marks": "begin each text with the mark of a question, or set prompts.format to text",
    "marks-out-of-order": "let marked questions and answers take turns, or set prompts.format to text",
}
"""What to do if no row is left, by the reason for which most rows were dropped."""


class Example(NamedTuple):
    """A prompt and a response as text and as token ids: a row of phase `prompts`' files."""

    id: str
    """A digest of the prompt's token ids. Prompts that the model cannot tell apart have the same id."""
    prompt: str
    messages: str
    """The prompt's turns as JSON. Empty for bare text."""
    response: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    finish_reason: str
    tools: str = ""
    """The schemas of the tools in the conversation, as JSON. Empty without tools."""


@dataclass
class TemplateRemarks:
    """How many conversations the chat template does not write as they are."""

    rows: int = 0
    refused: int = 0
    """Conversations that the template refuses."""
    detail: str = ""
    """What it says about the first of them."""
    different: int = 0
    """Conversations that the template writes in another way when they are answered."""
    incomplete: int = 0
    """Conversations of which the template leaves text out, or writes it as a thought."""
    without_thought: int = 0
    """Responses whose thoughts the template leaves out."""

    def add(self, encoded: Sequence[Encoded]) -> None:
        """Count some more conversations."""
        self.rows += len(encoded)
        for row in encoded:
            self.refused += row.refused == "template-refuses"
            self.different += row.refused == "template-differs"
            self.incomplete += row.refused == "template-drops-text"
            self.without_thought += row.lacks_thought
            self.detail = self.detail or row.detail

    def log(self, name: str) -> None:
        """Warn of what was counted, and say what helps. `name` is the source's name."""
        if self.refused:
            log.warning(
                "%s: the chat template refuses %d of %d conversations, which are dropped (%s)",
                *(name, self.refused, self.rows, self.detail),
            )
        if self.different:
            log.warning(
                "%s: %d of %d conversations are dropped, because the chat template opens their answers in another way "
                "than it prompts for them: %s",
                *(name, self.different, self.rows, FIXES["template-differs"]),
            )
        if self.incomplete:
            log.warning(
                "%s: %d of %d conversations are dropped, because the chat template leaves a part of their text out or "
                "writes it as a thought: %s",
                *(name, self.incomplete, self.rows, FIXES["template-drops-text"]),
            )
        if self.without_thought:
            log.warning(
                "%s: the chat template leaves out the thoughts of %d of %d responses, which are trained without them",
                *(name, self.without_thought, self.rows),
            )


@dataclass(frozen=True)
class ExampleBuilder:
    """Makes examples of conversations."""

    renderer: Renderer

    max_prompt_tokens: int

    max_new_tokens: int
    """Responses are cut at this many tokens."""

    too_long: Literal["drop", "refuse"] = "drop"
    """What happens to a prompt of more than `max_prompt_tokens`."""

    remarks: TemplateRemarks = field(default_factory=TemplateRemarks)
    """What the chat template did to the conversations."""

    def _has_control_token(self, conversation: Conversation) -> bool:
        """Whether a text holds something that the model would read as the end or the beginning of a turn."""
        # Data that was rendered before may end in an end of turn; `response_text` takes that one away.
        response = self.renderer.response_text(conversation.response)
        context = strings_in([*conversation.messages, conversation.extra, conversation.tools or []])
        return any(self.renderer.has_control_token(text) for text in (*context, response))

    def fault_of(self, conversation: Conversation) -> str | None:
        """The reason to drop a conversation before it is rendered; None if there is none."""
        if self._has_control_token(conversation):
            return "control-token"
        messages, tools = conversation.messages, conversation.tools
        if has_tools(messages, tools) and not self.renderer.can_render(messages, tools):
            return "tools-not-in-template"
        return None

    def build(self, conversations: Sequence[Conversation]) -> list[tuple[Example, str | None]]:
        """Each conversation's example, and the reason to drop it if there is one.

        Raises:
            DataError: a prompt is too long, and `too_long` says to refuse it.
        """
        # All rows of a batch may have been left out, and the tokenizer takes no empty list.
        if not conversations:
            return []
        messages = [conversation.messages for conversation in conversations]
        responses = [{**conversation.extra, "content": conversation.response} for conversation in conversations]
        tools = [conversation.tools for conversation in conversations]
        encoded = self.renderer.encode(messages, responses, self.max_new_tokens, tools)
        self.remarks.add(encoded)
        return [(self._example(row, schemas), self._fault(row)) for row, schemas in zip(encoded, tools, strict=True)]

    def _fault(self, row: Encoded) -> str | None:
        if row.refused:
            return row.refused
        if len(row.prompt_ids) > self.max_prompt_tokens:
            if self.too_long == "refuse":
                raise DataError(
                    f"a prompt has {len(row.prompt_ids)} tokens, more than prompts.max_prompt_tokens = "
                    f"{self.max_prompt_tokens} ({row.messages[-1]['content'][:40]!r}…): "
                    "raise it, or set prompts.too_long to drop"
                )
            return "prompt-too-long"
        if self.renderer.unknown_id in row.response_ids:
            return "unknown-character"
        return None if row.response.strip() else "empty-response"

    def _example(self, row: Encoded, tools: Tools | None) -> Example:
        prompt_ids = np.asarray(row.prompt_ids, np.int32)
        is_bare_text = self.renderer.config.template == "plain"
        return Example(
            id=hashlib.sha256(prompt_ids.tobytes()).hexdigest()[:16],
            prompt=row.prompt if is_bare_text else _readable(row.messages),
            # Bare text has no turns, and nothing that is made from it may be written with a chat template.
            messages=json.dumps([] if is_bare_text else row.messages, ensure_ascii=False),
            # The text of a cut response is cut where its token ids are.
            response=row.response if row.finish_reason == "stop" else self._decode(row),
            prompt_ids=prompt_ids,
            response_ids=np.asarray(row.response_ids, np.int32),
            finish_reason=row.finish_reason,
            tools=json.dumps(tools, ensure_ascii=False) if tools else "",
        )

    def _decode(self, row: Encoded) -> str:
        return decode_responses(self.renderer.tokenizer, [row.prompt_ids], [row.response_ids])[0]


def _readable(messages: Sequence[Message]) -> str:
    """A conversation for people: a single question bare, several turns with their roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
