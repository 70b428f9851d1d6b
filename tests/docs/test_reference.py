"""The reference pages agree with the code."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from spin_core.config.run import RunConfig
from tests.support.pages import ROOT, TEXTS

SOURCES = [
    path for folder in ("spin_core", "flows", "tasks", "infra") for path in sorted((ROOT / folder).rglob("*.py"))
]
NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
OTHERS = {
    "CAUSAL_LM",
    "CREATED_DESC",
    "END_TIME_DESC",
    "F8_E4M3",
    "F8_E5M2",
    "START_TIME_ASC",
    "EXPECTED_START_TIME_ASC",
}
"""Constants of libraries that look like variables."""


def reference():
    """The script in docs/."""
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    stale = [path.name for path, text in reference().pages().items() if path.read_text("utf-8") != text]
    assert stale == [], "run `make reference` and commit the result"


def test_every_setting_is_on_the_page():
    page, model_in = TEXTS["docs/reference/settings.md"], reference().model_in

    def names(model, prefix=""):
        for name, field in model.model_fields.items():
            kind = model_in(field.annotation)
            if kind is None:
                yield prefix + name
            else:
                yield from names(kind, f"{prefix}{name}.")

    every = list(names(RunConfig))
    assert len(every) > 200
    # Those of sft.train are those of train; only its own defaults are listed.
    missing = [name for name in every if f"| `{name}` |" not in page]
    assert {name.removeprefix("sft.") for name in missing} < set(every)
    assert all(name.startswith("sft.train.") for name in missing)


def variables_of(source: str) -> set[str]:
    """Environment variables that a module reads or sets: names in a call, and every text that can only be one."""
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    named = re.findall(r"environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*\"([A-Z_0-9]+)\"", source)
    return {*named, *(text for text in texts if isinstance(text, str) and NAME.fullmatch(text))} - OTHERS


def in_table() -> set[str]:
    """The variables that the page lists: those in the first column."""
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXTS["docs/reference/environment.md"], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([A-Z_0-9]+)`", row)}


def test_every_environment_variable_of_the_code_is_in_the_table():
    read = {name: path for path in SOURCES for name in variables_of(path.read_text("utf-8"))}
    assert len(read) > 30
    assert {name: str(path.relative_to(ROOT)) for name, path in read.items() if name not in in_table()} == {}


def test_every_variable_of_the_server_and_the_scripts_is_in_the_table():
    files = [
        ROOT / "infra/example.env",
        *(ROOT / "infra/slurm").iterdir(),
        ROOT / "prefect.yaml",
        ROOT / "infra/compose.yaml",
    ]
    named = {name for path in files for name in re.findall(r"\bSPIN_[A-Z_]+\b", path.read_text("utf-8"))}
    example = set(re.findall(r"^([A-Z_]+)=", (ROOT / "infra/example.env").read_text("utf-8"), re.MULTILINE))
    assert sorted((named | example) - in_table()) == []


def test_no_variable_is_in_the_table_twice_or_unused():
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXTS["docs/reference/environment.md"], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([A-Z_0-9]+)`", row)]
    assert len(names) == len(set(names))
    tests = [ROOT / "tests" / "support" / "servers" / "prefect_ui.py"]
    code = "\n".join(path.read_text("utf-8") for path in [*SOURCES, *tests, *every_other_file()])
    elsewhere = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_MODE"}  # read by s3fs and Ray
    assert [name for name in names if name.startswith("SPIN_") and name not in code and name not in elsewhere] == []


def texts_of(source: str) -> Iterator[str]:
    """The constant texts of a module, those of f-strings too; longer ones are written in several pieces."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_of_the_troubleshooting_page_is_in_the_code():
    page = TEXTS["docs/guide/troubleshooting.md"]
    shown = re.findall(r"^\| (?:\*\w+\*|`(?:error  |crash  |wrong  tokenizer  )?([^`]+)`)", page, re.MULTILINE)
    messages = [message for message in shown if message and not message.startswith("spin up")]
    assert len(messages) > 10
    texts = "\n".join(text for path in SOURCES for text in texts_of(path.read_text("utf-8")))
    pieces = [
        piece.strip(" ,") for message in messages for piece in re.split(r"…|\b(?:mine|train|wandb|SIGKILL)\b", message)
    ]
    assert [piece for piece in pieces if len(piece) > 3 and piece not in texts] == []


def test_every_state_of_the_troubleshooting_page_is_one():
    page = TEXTS["docs/guide/troubleshooting.md"].partition("## States in the UI")[2].partition("\n## ")[0]
    states = {
        name for row in re.findall(r"^\| (\*.+?) \|", page, re.MULTILINE) for name in re.findall(r"\*(\w+)\*", row)
    }
    prefect = {"Scheduled", "Late", "Pending", "Running", "AwaitingRetry"}
    prefect |= {"Completed", "Failed", "Crashed", "Cancelled"}
    texts = {text for path in SOURCES for text in texts_of(path.read_text("utf-8"))}
    assert states > prefect
    assert states - prefect - texts == set()


def test_the_levels_of_the_packages_are_those_that_the_imports_are_held_to():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", TEXTS["docs/architecture.md"], re.MULTILINE)
    held = (ROOT / "tests" / "test_packages.py").read_text("utf-8")
    levels = next(
        ast.literal_eval(node.value)
        for node in ast.parse(held).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS"
    )
    expected = [(str(number), package) for number, packages in enumerate(levels, start=1) for package in packages]
    assert rows == expected


def every_other_file() -> list[Path]:
    """The files of infra that are not Python, and prefect.yaml."""
    infra = (path for path in (ROOT / "infra").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return [*infra, ROOT / "prefect.yaml"]


def test_the_metadata_of_the_project_agree():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    version = re.search(r"^version = \"(.+)\"$", project, re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert f"## [{version}] - {citation['date-released']}" in TEXTS["CHANGELOG.md"]
    assert citation["authors"] == [{"name": "The spin-loop authors"}]
    assert f"Version {version}" in TEXTS["README.md"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}  # needs no network
