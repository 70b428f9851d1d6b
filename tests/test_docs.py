"""What README.md and docs/*.md say can be typed: commands parse, settings and targets exist, links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import NoneType
from typing import get_args

import click
import pytest
import yaml

from flows.command_line.main import main
from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import changes, resolve
from spin_core.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}
PLACES = {"RECIPE": "demo", "T": "0"}
"""What stands in a command for something of the user's that is not a name or a file."""


def command_lines(text: str) -> list[str]:
    """The `spin …` lines of code blocks, with what continues them, and those between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    shown = re.findall(r"^(?:    |\t)?(?:\$ )?(spin .+)$", text, re.MULTILINE)
    told = [" ".join(one.split()) for one in re.findall(r"`(spin [^`]+)`", text)]
    return [part.strip() for line in shown + told for part in line.split(" · ")]


def words_of(line: str) -> list[str]:
    """What the shell gives `spin`. Of alternatives, written as `adapter|merged`, the first."""
    words = [PLACES.get(word, word) for word in shlex.split(line, comments=True)[1:]]
    return [re.sub(r"^([\w-]+)(\|[\w-]+)+$", r"\1", word) for word in words]


def settings_of(text: str) -> set[str]:
    """The settings that a text names, by `--set` or between backticks."""
    files = r"(?:parquet|jsonl?|md|py|ya?ml|html)\b"
    sections = "|".join(name for name in RunConfig.model_fields if known([name, ""]) is None)
    told = re.findall(rf"`(?:--set )?((?:{sections})(?:\.(?!{files})\w+)+)(?:=[^`]*)?`", text)
    return {*told, *re.findall(r"--set[ =]['\"]?([\w.]+)=", text)} - {"a.b"}


def known(path: list[str]) -> bool | None:
    """Whether a setting exists; None if it is one with others below it, and the last word is empty."""
    model: type | None = RunConfig
    for place, name in enumerate(path):
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
            return place == len(path) - 1
    return True


ALL_LINES = sorted({(page, line) for page, text in TEXTS.items() for line in command_lines(text)})


def test_the_pages_have_commands_to_look_at():
    assert len(ALL_LINES) > 30
    assert command_lines("    spin up   # now\n\nsee `spin show\nx` and spin it") == ["spin up   # now", "spin show x"]
    assert command_lines("    spin run demo \\\n        --iterations 2\n") == ["spin run demo  --iterations 2"]
    assert command_lines("    $ spin show a · spin verify a") == ["spin show a", "spin verify a"]


@pytest.mark.parametrize(("page", "line"), ALL_LINES)
def test_every_command_line_parses(page, line):
    words = words_of(line)
    top = click.Context(main, info_name="spin")
    if words[0].startswith("-"):
        assert words[0] in {name for parameter in main.get_params(top) for name in parameter.opts}
        return
    name, command, rest = main.resolve_command(top, words)
    if not rest and "`" + line in TEXTS[page]:
        return  # the command is spoken of, not called
    context = command.make_context(name, rest, parent=top)
    recipe = context.params.get("recipe")
    assert recipe in RECIPES or name not in ("run", "check", "compare"), "a lineage's name is an option"
    if recipe in RECIPES:
        resolve(recipe, sets=context.params.get("sets", ()))
    else:
        changes(None, context.params.get("sets", ()))


@pytest.mark.parametrize("page", TEXTS)
def test_every_setting_that_is_named_exists(page):
    named = settings_of(TEXTS[page])
    assert sorted(name for name in named if not known(name.split("."))) == []


def test_settings_are_told_from_other_words():
    text = "`train.beta`, `--set train.lora.rank=16`, `train.parquet`, `train.betta` and --set prompts.columns.a=b"
    found = settings_of(text)
    assert found == {"train.beta", "train.lora.rank", "train.betta", "prompts.columns.a"}
    assert sorted(name for name in found if not known(name.split("."))) == ["train.betta"]
    assert not known(["train", "beta", "more"])


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_of_settings_that_is_shown_is_one(page):
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL):
        resolve("demo", overrides=yaml.safe_load(block))


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_and_picture_leads_somewhere(page):
    folder, wrong = (ROOT / page).parent, []
    for target, place in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", TEXTS[page]):
        path = folder / target if target else ROOT / page
        if not path.exists() or (place and place not in anchors(path.read_text("utf-8"))):
            wrong.append(f"{target}#{place}")
    assert wrong == []


def anchors(text: str) -> set[str]:
    """The places in a page that a link may name, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_every_make_target_and_module_that_is_named_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    code = "\n".join(re.findall(r"^ {4}.+$|`[^`]+`", TEXTS[page], re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", code)) - targets == set()
    modules = set(re.findall(r"python -m ((?:spin_core|infra|flows)\.\w+)", code))
    assert sorted(name for name in modules if importlib.util.find_spec(name) is None) == []
