"""Commands, settings, make targets, modules and paths that the documentation names exist, as they are shown."""

import importlib.util
import re
import shlex
from types import NoneType
from typing import get_args

import click
import pytest
import yaml

from flows.command_line.main import main
from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import read_changes, resolve
from spin_core.config.run import RunConfig
from tests.support.pages import EXAMPLES, ROOT, TEXTS, blocks, code_of

STAND_INS = {"RECIPE": "demo", "T": "0", "NAME": "demo"}
"""Words in a command for something of the user's that is neither a lineage nor a file."""

ALL_TEXTS = TEXTS | {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in EXAMPLES}
GENERATED = ("docs/reference/settings.md", "docs/reference/command-line.md")
"""Pages that a test compares with the code as a whole."""


def command_lines(text: str) -> list[str]:
    """The `spin …` lines of code blocks and comments, with what continues them, and those between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    shown = re.findall(r"^(?:    |\t|#\s+)?(?:\$ )?(spin .+)$", text, re.MULTILINE)
    named = [" ".join(line.split()) for line in re.findall(r"`(spin [^`]+)`", text)]
    return [part.strip() for line in shown + named for part in line.split(" · ")]


def words_of(line: str) -> list[str]:
    """What the shell gives `spin`. Of alternatives, written as `adapter|merged`, the first."""
    words = [STAND_INS.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    return [re.sub(r"^([\w-]+)(\|[\w-]+)+$", r"\1", word) for word in words]


def settings_of(text: str) -> set[str]:
    """The settings that a text names, by `--set` or between backticks."""
    files = r"(?:parquet|jsonl?|md|py|ya?ml|html)\b"
    sections = "|".join(name for name in RunConfig.model_fields if is_setting([name, ""]) is None)
    named = re.findall(rf"`(?:--set )?((?:{sections})(?:\.(?!{files})\w+)+)(?:=[^`]*)?`", text)
    return {*named, *re.findall(r"--set[ =]['\"]?([\w.]+)=", text)} - {"a.b", "A.B", "NAME"}


def is_setting(path: list[str]) -> bool | None:
    """Whether a setting exists; None if it is one with others below it, and the last word is empty."""
    model: type | None = RunConfig
    for depth, name in enumerate(path):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return False
        if not name:
            return None
        if name not in fields:
            return False
        kinds = [kind for kind in (fields[name].annotation, *get_args(fields[name].annotation)) if kind is not NoneType]
        if any(kind is dict or getattr(kind, "__origin__", None) is dict for kind in kinds):
            return True
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        if model is None:
            return depth == len(path) - 1
    return True


ALL_LINES = sorted(
    {(page, line) for page, text in ALL_TEXTS.items() if page not in GENERATED for line in command_lines(text)}
)


def test_the_pages_have_commands_to_look_at():
    assert len(ALL_LINES) > 30
    assert command_lines("    spin up   # now\n\nsee `spin show\nx` and spin it") == ["spin up   # now", "spin show x"]
    assert command_lines("    spin run demo \\\n        --iterations 2\n") == ["spin run demo  --iterations 2"]
    assert command_lines("    $ spin show a · spin verify a") == ["spin show a", "spin verify a"]
    assert command_lines("#   spin run demo\n") == ["spin run demo"]


@pytest.mark.parametrize(("page", "line"), ALL_LINES)
def test_every_command_line_parses(page, line):
    words = words_of(line)
    top = click.Context(main, info_name="spin")
    if words[0].startswith("-"):
        assert words[0] in {name for parameter in main.get_params(top) for name in parameter.opts}
        return
    name, command, rest = main.resolve_command(top, words)
    if not rest and "`" + line in ALL_TEXTS[page]:
        return  # the command is named, not called
    context = command.make_context(name, rest, parent=top)
    recipe = context.params.get("recipe")
    assert recipe in RECIPES or name not in ("run", "check", "compare"), "a lineage's name is an option"
    if recipe in RECIPES:
        resolve(recipe, sets=context.params.get("sets", ()))
    else:
        read_changes(None, context.params.get("sets", ()))


@pytest.mark.parametrize("page", ALL_TEXTS)
def test_every_setting_that_is_named_exists(page):
    named = settings_of(ALL_TEXTS[page])
    assert sorted(name for name in named if not is_setting(name.split("."))) == []


def test_settings_are_distinguished_from_other_words():
    text = "`train.beta`, `--set train.lora.rank=16`, `train.parquet`, `train.betta` and --set prompts.columns.a=b"
    named = settings_of(text)
    assert named == {"train.beta", "train.lora.rank", "train.betta", "prompts.columns.a"}
    assert sorted(name for name in named if not is_setting(name.split("."))) == ["train.betta"]
    assert not is_setting(["train", "beta", "more"])


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_of_settings_that_is_shown_is_one(page):
    for block in blocks(TEXTS[page], "yaml"):
        resolve("demo", overrides=yaml.safe_load(block))


@pytest.mark.parametrize("page", ALL_TEXTS)
def test_every_make_target_and_module_that_is_named_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    code = code_of(ALL_TEXTS[page]) if page.endswith(".md") else ALL_TEXTS[page]
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", code)) - targets - {"bench-"} == set()
    modules = set(re.findall(r"python -m ((?:spin_core|infra|flows)(?:\.\w+)+)", code)) - {"spin_core.train"}
    new = set(re.findall(r"^# new file: (\S+)\.py$", ALL_TEXTS[page], re.MULTILINE))
    new_modules = {name.replace("/", ".") for name in new}
    assert sorted(name for name in modules - new_modules if importlib.util.find_spec(name) is None) == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_path_of_the_repository_that_is_named_exists(page):
    """Files that are not part of the site are in backticks, since no link can lead to them."""
    new = set(re.findall(r"^# new file: (\S+)$", TEXTS[page], re.MULTILINE))
    folders = "spin_core|flows|tasks|infra|tests|docs"
    named = set(re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", code_of(TEXTS[page])))
    ignored = {"infra/.env", "infra/secrets.env"}
    assert sorted(name for name in named - new - ignored if not (ROOT / name).exists()) == []
