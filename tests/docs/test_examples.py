"""The configurations in docs/examples resolve, and the worked examples of the architecture page run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.config.resolve import resolve
from spin_core.evaluation import suites
from spin_core.leaderboard import gate
from tests.support.pages import EXAMPLES, FENCE, ROOT, TEXTS

PAGE = TEXTS["docs/architecture.md"]
SECTIONS = dict(re.findall(r"^### (Add an? \w+)\n(.*?)(?=^###? |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPE = re.compile(r"^#\s+spin run\s+(\S+) --config (\S+)", re.MULTILINE)


def test_there_are_the_examples_that_the_pages_promise():
    names = [path.stem for path in EXAMPLES]
    assert names == ["eight-gpus-zero2", "judge", "lora-one-gpu", "nightly", "own-data"]
    assert [section.split()[-1] for section in SECTIONS] == ["loss", "suite", "engine", "sink", "phase", "recipe"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_configuration_resolves_and_can_be_scored(path):
    recipe, name = RECIPE.search(path.read_text("utf-8")).groups()
    assert name == path.name
    assert resolve(recipe, file=path).recipe == recipe
    # vLLM may not be installed here.
    config = resolve(recipe, file=path, sets=["evaluate.lm_eval.engine=transformers"])
    gate.check_metrics(config)
    suites.check(config)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_every_worked_example_runs(section, tmp_path):
    """Its new files and changes are applied to a copy of the source, in which its last block runs."""
    for package in ("spin_core", "tasks", "flows"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    to_try = []
    for language, body in FENCE.findall(SECTIONS[section]):
        first, _, rest = body.partition("\n")
        if language == "diff":
            apply(tmp_path / first.removeprefix("# "), rest)
        elif first.startswith("# new file: "):
            path = tmp_path / first.removeprefix("# new file: ")
            assert not path.exists()
            path.write_text(rest, "utf-8")
        else:
            assert first == "# try it"
            to_try.append(rest)
    assert len(to_try) == 1
    work = tmp_path / "work"
    work.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", to_try[0]],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SPIN_RUNS": str(work / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def apply(path: Path, change: str) -> None:
    """Apply the hunks of a change, which `@@` parts; the lines that each replaces must be in the file exactly once."""
    text = path.read_text("utf-8")
    for hunk in change.rstrip("\n").split("\n@@\n"):
        lines = hunk.split("\n")
        old = "\n".join(line[1:] for line in lines if line[:1] != "+")
        new = "\n".join(line[1:] for line in lines if line[:1] != "-")
        assert text.count(old) == 1, f"{path.name} has {text.count(old)} times:\n{old}\nchange docs/architecture.md"
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def test_a_change_is_applied_where_its_lines_are(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("a = 1\nb = 2\nc = 3\n", "utf-8")
    apply(file, "-a = 1\n+a = 2\n@@\n+new = 0\n c = 3\n")
    assert file.read_text("utf-8") == "a = 2\nb = 2\nnew = 0\nc = 3\n"
    with pytest.raises(AssertionError, match="has 0 times"):
        apply(file, "-d = 4\n+d = 5\n")
