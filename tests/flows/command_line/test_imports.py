"""What the small commands import: nothing that takes long to load.

The commands that only read are started often, and an import of pandas or torch takes longer than all they do. A clock
would fail on a busy machine, so these tests look at the modules that each command has loaded.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lineages.small_lineage import build_lineage

HEAVY = (
    *("torch", "transformers", "datasets", "lm_eval", "peft", "accelerate", "sklearn", "scipy", "matplotlib"),
    *("pandas", "pyarrow.dataset", "prefect", "httpx", "fsspec", "huggingface_hub", "openai"),
)
"""Modules that no small command needs."""

TABLES = ("numpy", "pyarrow")
"""Modules that only commands which read Parquet files need."""

CODE = """
import json, sys
from flows.command_line.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return build_lineage(tmp_path_factory.mktemp("runs")).runs


def loaded_modules(*arguments: str) -> set[str]:
    """The modules that a command has loaded at its end."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    ("command", "also_absent"),
    [
        (("leaderboard",), ()),
        (("leaderboard", "tale", "--json"), ()),
        (("show", "tale"), TABLES),
        (("samples", "tale", "--json"), ()),
        (("samples", "tale", "--train", "--json"), ()),
        (("status",), (*TABLES, "rich")),
        (("verify", "tale"), TABLES),
    ],
    ids=" ".join,
)
def test_a_command_that_reads_a_lineage_loads_nothing_heavy(runs, command, also_absent):
    assert not {*HEAVY, *also_absent} & loaded_modules(*command, "--runs", str(runs))


@pytest.mark.parametrize("command", [("recipes",), ("recipes", "demo"), ("recipes", "--settings")], ids=" ".join)
def test_recipes_are_listed_without_anything_heavy(command):
    assert not {*HEAVY, *TABLES} & loaded_modules(*command)


@pytest.mark.parametrize("command", ["", "run ", "leaderboard ", "up ", "data "])
def test_help_loads_nothing_heavy(command):
    """Not even what validates settings."""
    modules = loaded_modules(*command.split(), "--help")
    assert not {*HEAVY, *TABLES, "pydantic", "rich", "yaml"} & modules
