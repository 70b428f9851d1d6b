"""A tokenizer's chat template: from conversations to texts, within limits of time and size."""

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from spin_core.data.templates.sandbox import MEMORY_GB, read_message, write_message
from spin_core.data.templates.thoughts import KEYS, Turn
from spin_core.errors import ConfigError, printable

SECONDS = 10.0
"""The most processor time for one conversation. Real templates need about a millisecond."""

CHARACTERS = 2**24
"""The longest text of one conversation."""


class Input(NamedTuple):
    """What a template gets."""

    turns: Sequence[Turn]
    opens_answer: bool
    """Whether the beginning of an answer is to follow the turns."""
    tools: list[dict[str, Any]] | None = None
    """The schemas of the tools that the assistant may call."""


class Rendering(NamedTuple):
    """What a template writes for one conversation."""

    text: str
    error: str = ""
    """Why the template refuses the conversation; empty if it does not."""


class ChatTemplate:
    """A chat template with the variables that it sees in addition to the conversation."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self.source, self.variables = source, dict(variables)

    @classmethod
    def of(cls, tokenizer: Any, switches: Mapping[str, Any]) -> "ChatTemplate":
        """The tokenizer's template with these switches.

        Raises:
            ConfigError: there is no template, or it does not read a switch.
        """
        try:
            source: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(
                "the tokenizer has no chat template: set chat.template to plain, or to format with chat.format, "
                "or set model.tokenizer to one that brings a template"
            ) from error
        unknown = [name for name in switches if name not in source]
        if unknown:
            raise ConfigError(
                f"chat.template_kwargs sets {', '.join(unknown)}, which the chat template does not read: take it out"
            )
        return cls(source, {**tokenizer.special_tokens_map, **switches})

    def render(self, inputs: Sequence[Input]) -> list[Rendering]:
        """What the template writes for each input.

        Raises:
            ConfigError: the template does not end, or writes too much.
        """
        request = {
            "template": self.source,
            "variables": self.variables,
            "seconds": SECONDS,
            "characters": CHARACTERS,
            "conversations": [
                {
                    "messages": [_normal(turn) for turn in input.turns],
                    "add_generation_prompt": input.opens_answer,
                    "tools": input.tools,
                }
                for input in inputs
            ],
        }
        replies = _process.replies(request)
        return [self._rendering(reply, input.turns) for reply, input in zip(replies, inputs, strict=True)]

    def _rendering(self, reply: Mapping[str, str], turns: Sequence[Turn]) -> Rendering:
        if "limit" in reply:
            raise ConfigError(
                f"the chat template was stopped at the conversation that ends in {ending(turns)!r}, because "
                f"{reply['limit']}: fix the template, or set chat.template to format"
            )
        return Rendering(reply.get("text", ""), printable(" ".join(reply.get("error", "").split())))


def ending(turns: Sequence[Turn]) -> str:
    """The end of a conversation, to name it in messages."""
    return str(turns[-1].get("content", ""))[-40:]


def _normal(turn: Turn) -> Turn:
    """A turn with its thoughts under each name that templates read, and without empty keys: as transformers does it."""
    turn = {key: value for key, value in turn.items() if value is not None}
    thought = next((turn[key] for key in KEYS if key in turn), None)
    return turn if thought is None else {"thinking": thought, **turn, "reasoning_content": thought}


class _Process:
    """The process that runs templates. It starts when it is needed, and again after a limit has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        """The process that started it. A fork of that one must start its own."""

    def replies(self, request: Mapping[str, Any]) -> list[dict[str, str]]:
        """The replies to the request's conversations, up to the first that exceeds a limit."""
        replies: list[dict[str, str]] = []
        with self._lock:
            process = self._running()
            requests, answers = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
            try:
                write_message(requests, request)
                for _ in request["conversations"]:
                    replies.append(read_message(answers))
            except (EOFError, BrokenPipeError):
                replies.append({"limit": self._end_of(process, request["seconds"])})
        return replies

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid():
            self._process, self._owner = (
                subprocess.Popen(
                    [sys.executable, "-m", "spin_core.data.templates.sandbox"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                ),
                os.getpid(),
            )
        return self._process

    def _end_of(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        """Why the process ended."""
        self._process = None
        _, status = process.communicate(), process.wait()
        if status == -signal.SIGPROF:
            return f"it runs for more than {seconds:g} s"
        return f"it ends its process (status {status}), which may use {MEMORY_GB} GB of memory"


_process = _Process()
atexit.register(_process.close)
