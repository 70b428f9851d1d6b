"""Commands that read: recipes, leaderboards, records and samples."""

import csv
import io
import json

import yaml

from flows.command_line.options import runs_argument
from flows.command_line.printing.run_summary import print_summary
from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import resolve
from spin_core.leaderboard.board import Board, leaderboard
from spin_core.store.records import IterationRecord
from tests.support.lineages.small_sweeps import build_swept_lineage


def test_recipes_are_listed_with_what_they_are_for(spin):
    output = spin("recipes").output
    assert all(name in output for name in RECIPES)
    assert "Start here" in output


def test_a_recipe_is_shown_as_a_file_that_config_reads(spin, tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(spin("recipes", "demo").stdout)
    assert resolve("demo", file=file) == resolve("demo")
    assert yaml.safe_load(file.read_text())["recipe"] == "demo"


def test_every_setting_is_listed_with_its_help(spin):
    output = spin("recipes", "--settings").output
    for name in ("train.beta", "generate.temperature", "evaluate.lm_eval.tasks", "prompts.source.path", "gate.rule"):
        assert f"{name} = " in output
    assert "The paper's lambda." in output


def test_the_leaderboard_shows_every_version_with_its_error(spin):
    output = spin("leaderboard", "tale").output
    assert "Leaderboard of tale" in output
    assert [word for line in output.splitlines() for word in line.split()[:1] if word.startswith("θ_")] == [
        "θ_0",
        "θ_1",
        "θ_2",
    ]
    assert "3.50" in output
    assert "↓" in output


def test_hints_name_the_runs_folder_unless_it_is_the_default(spin, lineage, monkeypatch):
    assert "all scores: spin leaderboard tale --all\n" in spin("leaderboard", "tale").output
    monkeypatch.delenv("SPIN_RUNS")
    output = spin("leaderboard", "tale", "--runs", lineage.runs).output
    assert f"all scores: spin leaderboard tale --all --runs {lineage.runs}" in "".join(output.splitlines())
    status = spin("status", "--runs", lineage.runs).output
    assert status.startswith(f"nothing is up for {lineage.runs}: spin up --runs {lineage.runs} starts it\n")


def test_the_summary_of_a_run_names_the_runs_folder_unless_it_is_the_default(lineage, monkeypatch, capsys):
    monkeypatch.setenv("SPIN_RUNS", str(lineage.runs))
    print_summary(lineage.runs, "tale")
    assert "spin samples tale        records    spin show tale\n" in capsys.readouterr().out
    monkeypatch.delenv("SPIN_RUNS")
    print_summary(lineage.runs, "tale")
    output = capsys.readouterr().out
    assert f"spin samples tale --runs {lineage.runs}\nrecords    spin show tale --runs {lineage.runs}\n" in output
    monkeypatch.chdir(lineage.runs)
    assert runs_argument(lineage.runs / "runs") == ""
    assert runs_argument(lineage.runs / "my runs") == f" --runs '{lineage.runs}/my runs'"


def test_the_summary_of_a_run_has_the_result_of_the_frontier_in_one_line(tmp_path, capsys):
    swept = build_swept_lineage(tmp_path)
    print_summary(tmp_path, "tale", leaderboard(swept))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("frontier"))
    assert line.startswith("frontier   θ_2 at temperature 0.5 is below θ_0's curve")
    print_summary(tmp_path, "tale")
    assert "frontier" not in capsys.readouterr().out


def test_the_leaderboard_as_json_is_the_file(spin, lineage):
    printed = json.loads(spin("leaderboard", "tale", "--json").stdout)
    assert printed == json.loads((lineage.root / "leaderboard.json").read_text())
    assert Board.model_validate(printed) == leaderboard(lineage)
    assert json.loads(spin("leaderboard", "--json").stdout) == [printed]


def test_the_leaderboard_as_csv_has_a_line_a_score(spin, lineage):
    text = spin("leaderboard", "tale", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == sum(len(row.scores) for row in leaderboard(lineage).rows)
    assert rows[1] | {"value": "3.0"} == rows[1]
    assert (rows[1]["lineage"], rows[1]["model"], rows[1]["task"], rows[1]["n"]) == ("tale", "θ_1", "heldout_nll", "8")
    assert "\r" not in text


def test_the_leaderboard_of_an_empty_folder_says_how_to_begin(spin, tmp_path):
    assert "start one with spin run demo" in spin("leaderboard", "--runs", tmp_path).output
    assert json.loads(spin("leaderboard", "--json", "--runs", tmp_path).stdout) == []


def test_show_lists_the_inputs_of_an_iteration(spin, lineage):
    output = spin("show", "tale").output
    assert output.index("θ_0 → θ_1") < output.index("θ_1 → θ_2")
    for part in (
        "1 of 2; dropped: 1 empty",
        "promote: θ_1 is the next opponent",
        "total 9.0 without starting processes, ",
        lineage.records()[0].player.digest[:12],
    ):
        assert part in output
    assert "θ_0 → θ_1" not in spin("show", "tale", 1).output


def test_show_as_json_is_the_records(spin, lineage):
    records = [IterationRecord.model_validate(value) for value in json.loads(spin("show", "tale", "--json").stdout)]
    assert records == lineage.records()
    assert IterationRecord.model_validate(json.loads(spin("show", "tale", 1, "--json").stdout)) == lineage.records()[1]


def test_samples_show_the_human_and_every_version(spin):
    output = spin("samples", "tale", "-n", 2).output
    for part in ("tell me a story", "<b>bold</b> | *stars*", "human", "early 0", "late 0 0", "late 1 0"):
        assert part in output
    assert "late 1 2" not in output


def test_samples_up_to_a_version(spin):
    samples = json.loads(spin("samples", "tale", 1, "--json").stdout)
    assert len(samples) == 4
    assert [answer["text"] for answer in samples[0]["answers"]] == ["early 0", "late 0 0"]
