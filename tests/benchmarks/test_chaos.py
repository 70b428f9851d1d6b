"""The parts of `make chaos` that need no run: its kinds of lineages, how processes are found, and its tables."""

import os
import subprocess
import sys

import pytest

from spin_core.config.resolve import resolve
from tests.benchmarks.chaos import __main__ as chaos
from tests.benchmarks.chaos import lineages, processes, results
from tests.benchmarks.chaos.kinds import KINDS
from tests.benchmarks.chaos.results import Kill, Result


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_a_configuration(tmp_path, name):
    (tmp_path / "model").mkdir()  # so that none is made
    config = resolve("demo", overrides=KINDS[name].settings(tmp_path))
    assert config.prompts.sample == 48


def test_a_process_that_is_left_is_found_by_its_folder_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ORPHAN_SECONDS", 0.0)
    folder = tmp_path / "lineage-1"
    with subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, **processes.environment(folder)},
    ) as process:
        assert processes.marked(str(folder)) == {process.pid}
        assert processes.marked(str(tmp_path / "lineage-10")) == set()
        (line,) = processes.end_orphans(str(folder))
        assert "input()" in line
        assert process.wait(30) == -9


def test_what_a_complete_lineage_should_not_have_is_listed(tmp_path):
    for name in ("killed", "whole"):
        (tmp_path / name / "iter_00" / "log").mkdir(parents=True)
    (tmp_path / "killed" / "iter_00" / "log" / "second.jsonl").touch()
    assert lineages.leftovers(tmp_path / "killed", tmp_path / "whole") == []
    partial = tmp_path / "killed" / "iter_00" / ".train.partial"
    partial.mkdir()
    assert lineages.leftovers(tmp_path / "killed", tmp_path / "whole") == [str(partial)]


def test_a_kept_folder_rejects_a_seed_that_it_already_has(tmp_path):
    results.append(tmp_path / "results.jsonl", Result("demo", "spin run", "1-0"))
    results.append(tmp_path / "results.jsonl", Result("all", "spin up", "end"))
    (tmp_path / "run-demo-12-0").mkdir()
    for seed in (1, 12):
        with pytest.raises(SystemExit, match=f"already has lineages of seed {seed}: choose another --seed"):
            chaos.reject_used_seed(tmp_path, seed)
    chaos.reject_used_seed(tmp_path, 2)


def test_a_stop_is_announced_before_the_tables(capsys):
    with pytest.raises(SystemExit) as end:
        chaos._stop()
    assert end.value.code == 143
    assert capsys.readouterr().out == "stopped: the tables are of the lineages that were complete\n"


def test_the_tables_count_kills_and_results(tmp_path):
    kills = [Kill("flow", "SIGKILL", 1.0, 4.0), Kill("flow", "SIGHUP", 2.0), Kill("phase", "SIGKILL", 3.0, 8.0)]
    good = Result("demo", "spin run", "1-0", kills=kills, compared=9)
    bad = Result("demo", "spin run", "1-1", compared=9, different=["iter_00/train"])
    for result in (good, bad):
        results.append(tmp_path / "results.jsonl", result)
    assert results.read(tmp_path / "results.jsonl") == [good, bad]
    assert good.is_good
    assert not bad.is_good
    lines = results.table([good, bad]).splitlines()
    assert "| flow | 1 | 1 | 2 |" in lines
    assert "| demo, `spin run` | 2 | 3 | 17 of 18 | 0 | 0 | 0 | 6 s | 8 s |" in lines
