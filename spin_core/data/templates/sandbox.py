"""The process that runs chat templates: `python -m spin_core.data.templates.sandbox`.

A chat template is a program that comes with a model. It may loop forever or write text without end, so it runs in a
process of its own, with limits that the kernel enforces: on memory, and on the processor time of each conversation.
Jinja's sandbox keeps it from everything except the conversation.

Messages in both directions are JSON with their length before them (`write_message`, `read_message`). A request is an
object with `template`, `variables`, `seconds`, `characters` and `conversations`, each with more variables. There is one
reply for each conversation: an object with `text`, `error` (the template refuses the conversation) or `limit` (it needs
too much).

The environment is that of transformers' `apply_chat_template`, so both write the same text; a test compares them. Only
the date is another: a template that writes today's date would give other token ids tomorrow.
"""

import json
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_GB = 1
"""The most memory that the process may address."""

_DATE = "26 Jul 2024"
"""What a template gets for today's date: the default of Llama 3's."""

_LENGTH = struct.Struct("<Q")


def write_message(stream: BinaryIO, value: Any) -> None:
    """Write a JSON value to a pipe."""
    data = json.dumps(value).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_message(stream: BinaryIO) -> Any:
    """The next JSON value from a pipe. Raises `EOFError` if it is closed."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(head)[0])
    return json.loads(data)


def render(request: Mapping[str, Any], conversation: Mapping[str, Any]) -> dict[str, str]:
    """The reply for one conversation: the text that a template writes, or why there is none."""
    pieces: list[str] = []
    characters = 0
    try:
        template = _compiled(request["template"])
        for piece in template.generate({"documents": None, **request["variables"], **conversation}):
            pieces.append(piece)
            characters += len(piece)
            if characters > request["characters"]:
                return {"limit": f"it writes more than {request['characters']:,} characters"}
    except MemoryError:
        return {"limit": f"it needs more than {MEMORY_GB} GB of memory"}
    except TemplateError as error:
        return {"error": str(error)}
    except Exception as error:  # a template is a program, and can fail in any way that Python knows
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": "".join(pieces)}


def main() -> None:
    """Answer requests until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # They reach the whole process group, and the parent decides what they mean. It closes the pipe when it ends.
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_GB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = read_message(requests)
        except EOFError:
            return
        for conversation in request["conversations"]:
            # Its signal ends the process, also in the middle of one long operation.
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            reply = render(request, conversation)
            signal.setitimer(signal.ITIMER_PROF, 0)
            write_message(replies, reply)


class _Generation(Extension):
    """The tag `generation`, with which templates mark what the assistant writes. It writes its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda _format: _DATE
    return environment.from_string(source)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without the escapes of HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


if __name__ == "__main__":
    main()
