"""Commands that compute, as far as they need no Prefect server: their help, and lineages in use."""

import os
from typing import get_args

import pytest

from spin_core.config.evaluate import SuiteName
from spin_core.store import lock
from tests.support.processes.command_runner import refusal


@pytest.mark.parametrize("command", [["run", "demo", "--lineage", "tale"], ["next", "tale"]])
def test_a_lineage_in_use_names_its_holder(spin, lineage, command):
    with lock.locked(lineage.root):
        line = refusal(spin(*command, status=2))
    assert line.startswith(f"lineage tale is in use by process {os.getpid()} on ")


@pytest.mark.parametrize("command", [["run", "demo", "--lineage", "tale"], ["next", "tale"]])
def test_no_verify_reaches_the_phases_by_their_environment(spin, lineage, monkeypatch, command):
    monkeypatch.setenv("SPIN_VERIFY", "")
    with lock.locked(lineage.root):
        spin(*command, status=2)
        assert os.environ["SPIN_VERIFY"] == ""
        spin(*command, "--no-verify", status=2)
    assert os.environ["SPIN_VERIFY"] == "0"


def test_the_help_of_evaluate_names_every_suite(spin):
    output = " ".join(spin("evaluate", "--help").stdout.split())
    for name in get_args(SuiteName):
        assert name.removesuffix("-quick") in output
    assert "-quick" in output
    assert "self-play" in output
