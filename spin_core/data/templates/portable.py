"""A lineage's way of writing prompts as one chat template, for programs that know templates only.

It writes what `Renderer` writes: the format string or bare text of `chat.template`, the lineage's system prompt where a
conversation has none, and the switches of `chat.template_kwargs` where a program does not set them.
"""

import json

from spin_core.data.chat import Message, Renderer
from spin_core.data.templates.chat_template import ChatTemplate, Input

_SYSTEM_FIRST = """\
{%- if messages[0]['role'] != 'system' -%}
{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}
{%- endif -%}"""
"""For a template that writes system turns."""

_SYSTEM_IN_FIRST_TURN = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system, messages = messages[0]['content'], messages[1:] -%}
{%- else -%}
{%- set system = SYSTEM -%}
{%- endif -%}
{%- if system -%}
{%- set first = {'role': messages[0]['role'], 'content': system + '\\n\\n' + messages[0]['content']} -%}
{%- set messages = [first] + messages[1:] -%}
{%- endif -%}"""
"""For one that does not, so that the system prompt becomes the beginning of the first turn."""

_PLAIN = """\
{%- for turn in messages -%}
{{- turn['content'] -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}"""

_FORMAT = """\
{%- for turn in messages -%}
{%- if turn['role'] == 'user' -%}{{- FORMAT | replace('{prompt}', turn['content']) -}}
{%- else -%}{{- turn['content'] + CLOSING + '\\n\\n' -}}{%- endif -%}
{%- endfor -%}"""

_SWITCH = """\
{%- if NAME is not defined -%}{%- set NAME = VALUE -%}{%- endif -%}"""

_HEADER = """\
{%- if add_generation_prompt -%}{{- HEADER -}}{%- endif -%}"""

_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "What is\nthis?"},
    {"role": "assistant", "content": "A test."},
    {"role": "user", "content": "Why?"},
)


def portable_template(renderer: Renderer) -> str:
    """The template by which other programs write a lineage's prompts."""
    config = renderer.config
    if config.template != "tokenizer":
        body = _PLAIN if config.template == "plain" else _FORMAT
        body = body.replace("FORMAT", _literal(config.format)).replace("CLOSING", _literal(renderer.frame.closing))
        bos = "{{- bos_token -}}" if config.add_bos and renderer.tokenizer.bos_token else ""
        return bos + _SYSTEM_IN_FIRST_TURN.replace("SYSTEM", _literal(config.system or "")) + body
    switches = "".join(
        _SWITCH.replace("NAME", name).replace("VALUE", _literal(value))
        for name, value in config.template_kwargs.items()
    )
    system = _SYSTEM_IN_FIRST_TURN
    if renderer.takes_system:
        system = _SYSTEM_FIRST if config.system else ""
    header = _HEADER.replace("HEADER", _literal(renderer.added_header)) if renderer.added_header else ""
    source: str = renderer.tokenizer.get_chat_template()
    return switches + system.replace("SYSTEM", _literal(config.system or "")) + source + header


def differs(renderer: Renderer, template: str) -> bool:
    """Whether a template writes another prompt than the lineage does for a conversation of two questions."""
    written = ChatTemplate(template, renderer.tokenizer.special_tokens_map).render([Input(_PROBE, True)])[0]
    expected = renderer.prompt_text(_PROBE)
    if renderer.config.template != "tokenizer" and renderer.config.add_bos:
        expected = (renderer.tokenizer.bos_token or "") + expected
    return written.text != expected


def _literal(value: object) -> str:
    """A JSON value as Jinja reads it."""
    names = {True: "true", False: "false", None: "none"}
    if value is None or isinstance(value, bool):
        return names[value]
    return json.dumps(value, ensure_ascii=False)
