"""Chat templates in a process of their own: the same text as transformers writes, and limits."""

import threading
import time
from pathlib import Path

import pytest

from spin_core.data.templates import chat_template
from spin_core.data.templates.chat_template import ChatTemplate, Input, Rendering
from spin_core.errors import ConfigError
from tests.support.models.chat_tokenizers import chat_tokenizer

ASK = [{"role": "user", "content": "What is 2 + 2?"}]

FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

RUNAWAYS = {
    "a loop without end": (FOREVER, "runs for more than 0.5 s"),
    "text without end": (FOREVER.replace("{% endfor %}", "x{% endfor %}"), "runs for more than|writes more than"),
    "one long text": ("{{ 'x' * 9000000000 }}", "needs more than 1 GB of memory"),
    "a text that doubles": (
        "{% set n = namespace(t='x') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "needs more than 1 GB of memory|runs for more than",
    ),
    "one long operation": ("{{ messages | length * 9 ** (9 ** 9) }}", "runs for more than 0.5 s"),
    "many lines": ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than 16,777,216 characters"),
}


def render(source, turns=ASK, **variables):
    return ChatTemplate(source, variables).render([Input(turns, True)])[0]


@pytest.mark.parametrize(("source", "says"), RUNAWAYS.values(), ids=RUNAWAYS)
def test_a_template_that_needs_too_much_is_stopped_with_one_line(source, says, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    with pytest.raises(ConfigError, match=says) as error:
        render(source)
    assert "the conversation that ends in 'What is 2 + 2?'" in str(error.value)
    assert "set chat.template to format" in str(error.value)
    assert "\n" not in str(error.value)
    assert render("fine").text == "fine"


def test_the_conversation_that_a_template_does_not_finish_is_named(monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    source = "{% if messages[0].content == 'b' %}" + FOREVER + "{% endif %}ok"
    inputs = [Input([{"role": "user", "content": name}], True) for name in "abc"]
    with pytest.raises(ConfigError, match="ends in 'b', because it runs for"):
        ChatTemplate(source, {}).render(inputs)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_an_error_in_a_template_is_told_for_its_conversation(source, error):
    text, message = render(source)
    assert text == ""
    assert error in message


@pytest.mark.parametrize(
    "source",
    ["{{ open('/etc/passwd').read() }}", "{{ messages.__class__.__base__ }}", "{{ lipsum.__globals__.os.environ }}"],
)
def test_a_template_sees_neither_files_nor_the_environment(source):
    assert render(source).error


def test_thoughts_have_each_name_and_empty_keys_are_absent():
    turn = {"role": "assistant", "content": "4", "reasoning": "Two.", "tool_calls": None}
    source = (
        "{% for m in messages %}{{ m.keys() | sort | join(',') }} {{ m.thinking }}{{ m.reasoning_content }}{% endfor %}"
    )
    assert render(source, [turn]).text == "content,reasoning,reasoning_content,role,thinking Two.Two."
    tokenizer = chat_tokenizer("chatml")
    assert tokenizer.apply_chat_template([turn], chat_template=source, tokenize=False) == render(source, [turn]).text


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ '<é>' | tojson }}",
        "{% generation %}a{% set b = 1 %}{% endgeneration %}{{ b is defined }}",
        "{% for m in messages %}{% continue %}{% endfor %}{{ tools is none }}{{ documents is none }}",
        "  {% if true %}\n    x\n  {% endif %}\n{{ bos_token }}{{ eos_token }}{{ pad_token }}\n\n",
        "{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(a=1) }}",
    ],
)
def test_the_environment_is_that_of_transformers(source):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = source
    want = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.of(tokenizer, {}).render([Input(ASK, True)]) == [Rendering(want)]


def test_tools_and_switches_reach_the_template():
    tools = [{"type": "function", "function": {"name": "add"}}]
    template = ChatTemplate("{{ tools[0].function.name }} {{ thinking }}", {"thinking": False})
    assert template.render([Input(ASK, False, tools)]) == [Rendering("add False")]


def test_threads_get_their_own_replies():
    template = ChatTemplate("{{ messages[0].content }}", {})
    inputs = [Input([{"role": "user", "content": str(number) * 5000}], True) for number in range(50)]
    want = [str(number) * 5000 for number in range(50)]
    results: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append([row.text for row in template.render(inputs)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [want] * 4


def test_the_process_ends_with_the_one_that_started_it():
    assert render("fine").text == "fine"
    process = chat_template._process._process
    assert process is not None
    chat_template._process.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode == 0
    assert render("again").text == "again"
