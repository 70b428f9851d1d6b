"""Commands that compute, as far as they need no Prefect server: their help, and lineages in use."""

import os
from typing import get_args

import pytest

from flows.command_line import run
from spin_core.config.evaluate import SuiteName
from spin_core.errors import TryAgain
from spin_core.lineage.find import find_lineage
from spin_core.lineage.start import start_lineage
from spin_core.store import lock
from tests.support.lineages.small_lineage import build_lineage
from tests.support.processes.command_runner import refusal, run_spin


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


def test_next_that_fails_leaves_the_lineages_settings_as_they_were(tmp_path, monkeypatch):
    lineage = build_lineage(tmp_path, sets=["iterations=5", "controls.temperatures=[0.9]"])  # two are finished

    def fail(_runs):
        assert find_lineage(tmp_path, "tale").config.iterations == 3
        raise TryAgain("no port is free: run the same command again")

    monkeypatch.setattr(run, "_start_server", fail)
    run_spin("next", "tale", "--set", "gate.rule=best", "--runs", tmp_path, status=75)
    assert find_lineage(tmp_path, "tale").config == lineage.config


def test_next_that_fails_keeps_settings_on_which_something_published_depends(tmp_path, monkeypatch):
    lineage = build_lineage(tmp_path)
    t = len(lineage.records())

    def fail(_runs):
        start_lineage(tmp_path, "tale", find_lineage(tmp_path, "tale").config)
        published = lineage.iteration(t) / "generations"
        published.mkdir(parents=True)
        (published / "manifest.json").write_text("{}")
        raise TryAgain("no port is free: run the same command again")

    monkeypatch.setattr(run, "_start_server", fail)
    run_spin("next", "tale", "--set", "generate.temperature=[0.5, 0.5, 0.9]", "--runs", tmp_path, status=75)
    assert find_lineage(tmp_path, "tale").config.generate.temperature[-1] == 0.9


def test_next_that_fails_does_not_undo_what_another_process_has_set(tmp_path, monkeypatch):
    lineage = build_lineage(tmp_path)
    others = lineage.config.model_copy(update={"iterations": 9})

    def fail(_runs):
        with lock.locked(lineage.root):
            start_lineage(tmp_path, "tale", others)
        raise TryAgain("no port is free: run the same command again")

    monkeypatch.setattr(run, "_start_server", fail)
    run_spin("next", "tale", "--runs", tmp_path, status=75)
    assert find_lineage(tmp_path, "tale").config == others
