"""The leaderboards as the command line prints them: side by side, suite by suite, as differences and as CSV."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.preflight.prepare import prepare_run
from spin_core.store.records import Score
from tests.support.lineages.small_lineage import NLLS, build_lineage, demo_config, report, suite_report
from tests.support.lineages.small_sweeps import build_swept_lineage

SUITE = "open-llm-leaderboard"
TASKS = {"arc_challenge": [1, 0, 1, 1], "gsm8k": [0, 0, 1, 0], "gsm8k/flexible": [0, 1, 1, 0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two lineages; `suited` was scored by a suite too, and its gate kept θ_1."""
    runs = tmp_path_factory.mktemp("runs")
    build_lineage(runs, "plain", nlls=NLLS[:2])
    lineage = build_lineage(
        runs, "suited", nlls=(*NLLS[:2], NLLS[0]), sets=[f"evaluate.suites=[{SUITE}]", "gate.rule=best"]
    )
    for t in range(3):
        notes = [f"{t} prompts [of 4] were cut"]
        suite_report(
            lineage.eval_folder(t) / SUITE, f"{t}" * 64, TASKS, {SUITE: ("arc_challenge", "gsm8k")}, notes=notes
        )
    return runs


@pytest.fixture
def shown(runs, monkeypatch):
    """What `spin leaderboard` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("flows.command_line.printing.console.console._width", 80)

    def shown(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["leaderboard", *arguments, "--runs", str(runs)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return shown


def test_lineages_are_compared_in_one_table(shown):
    output = shown("plain", "suited")
    assert "Leaderboard of plain, suited" in output
    first = output.split(f"\n{SUITE}\n")[0]
    assert [line.split()[0] for line in first.splitlines() if line.startswith((" plain", " suited", " θ_"))] == [
        *("plain", "θ_0", "θ_1"),
        *("suited", "θ_0", "θ_1", "θ_2"),
    ]
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("options", [[], ["--all"], ["--differences"]])
def test_a_lineage_without_scores_says_how_to_get_them(tmp_path, options):
    prepare_run(demo_config(), tmp_path, "early")
    done = CliRunner().invoke(main, ["leaderboard", *options, "--runs", str(tmp_path)], catch_exceptions=False)
    (line,) = done.stdout.splitlines()
    assert line.startswith("early has no scores yet: start ")
    assert line.endswith(f"spin run demo --lineage early --runs {tmp_path}, which scores θ_0 first")


def test_a_suite_has_its_own_table_with_the_papers_rows(shown):
    head, table = shown("suited").split(f"\n{SUITE}\n")
    titles = table[: table.index("θ_0")]
    assert titles.index("open") < titles.index("arc") < titles.index("gsm8k")
    assert "flexible" not in titles
    (row,) = (line for line in table.splitlines() if line.startswith(" θ_1 "))
    assert row.split() == ["θ_1", "◂", "0.50±0.18", "0.75±0.25", "0.25±0.25"]
    (row,) = (line for line in table.splitlines() if line.startswith(" paper θ_4  "))
    assert row.split()[2:] == ["0.6316", "0.6587", "0.3897"]
    assert "not measured here" in " ".join(table.split())
    assert "paper" not in head
    assert "gsm8k/flexible" in shown("suited", "--all")


def test_the_last_versions_notes_are_below_the_tables(shown):
    assert shown("suited").splitlines()[-1] == f"θ_2, {SUITE}: 2 prompts [of 4] were cut"
    assert shown("plain", "suited").splitlines()[-1] == f"suited, θ_2, {SUITE}: 2 prompts [of 4] were cut"
    assert "were cut" not in shown("plain")


def test_a_version_that_the_gate_rejected_is_marked(shown):
    head = shown("suited").split(f"\n{SUITE}\n")[0]
    (line,) = (line for line in head.splitlines() if line.startswith(" θ_2 "))
    assert line.startswith(" θ_2 keep-best ")
    assert "keep-best: the gate found that version worse" in " ".join(shown("suited").split())
    assert "keep-best" not in shown("plain")


def test_signs_of_markup_in_a_tasks_name_stay_signs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("flows.command_line.printing.console.console._width", 200)
    lineage = build_lineage(tmp_path, "odd")
    for t in range(3):
        suite_report(
            lineage.eval_folder(t) / "mt-bench", f"{t}" * 64, {"mt-bench": [1] * 8, "mt-bench/[red]x[/oops]": [1] * 8}
        )
    for arguments in (["--all"], ["--differences", "--all"]):
        done = CliRunner().invoke(main, ["leaderboard", "odd", *arguments, "--runs", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert "[red]x[/oops]" in done.stdout


def test_a_win_rate_is_shown_with_its_own_interval(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("flows.command_line.printing.console.console._width", 200)
    lineage = build_lineage(tmp_path, "won")
    rate = Score(value=0.525, stderr=0.05, n=80, interval=(0.4169, 0.6308))
    report(lineage.eval_folder(0) / "mt-bench", "m", NLLS[0], **{"mt-bench/against-human": rate})
    outputs = {
        form: CliRunner().invoke(main, ["leaderboard", "won", form, "--runs", str(tmp_path)]).stdout
        for form in ("--all", "--csv", "--json")
    }
    assert "0.53 [0.42, 0.63]" in outputs["--all"]
    (row,) = (row for row in csv.DictReader(io.StringIO(outputs["--csv"])) if row["task"].endswith("human"))
    assert (row["low"], row["high"]) == ("0.4169", "0.6308")
    assert json.loads(outputs["--json"])["rows"][0]["scores"]["mt-bench/against-human"]["interval"] == [0.4169, 0.6308]


def test_the_gates_choice_is_marked(shown):
    (line,) = (line for line in shown("suited").split(f"\n{SUITE}\n")[0].splitlines() if "◂" in line and "θ_" in line)
    assert line.startswith(" θ_1 ◂ ")


def test_differences_are_shown_against_both_versions(shown):
    lines = [line.split() for line in shown("suited", "--differences").splitlines() if line.startswith(" heldout nll")]
    assert [line[3] for line in lines] == ["θ_1", "θ_2", "θ_2"]
    differences = [next(word for word in line if word[0] in "+-") for line in lines]
    assert differences == ["-0.500", "+0.500", "+0"]
    # Differences of -.5, -.6, -.4 and -.5: the interval excludes 0.
    assert lines[0][-1].endswith("]*")


def test_csv_has_suite_gate_source_and_differences(shown):
    rows = list(csv.DictReader(io.StringIO(shown("plain", "suited", "--csv"))))
    (row,) = (row for row in rows if (row["lineage"], row["model"], row["task"]) == ("suited", "θ_2", "heldout_nll"))
    assert (row["suite"], row["gate"], row["plays_next"], row["source"]) == (
        "self-play",
        "keep-best",
        "False",
        "measured",
    )
    assert float(row["delta_previous"]) == pytest.approx(0.5)
    assert float(row["delta_base"]) == pytest.approx(0)
    assert float(row["low_previous"]) < 0.5 < float(row["high_previous"])
    assert {row["model"] for row in rows if row["plays_next"] == "True"} == {"θ_1"}
    reported = [row for row in rows if row["source"] == "reported"]
    assert {row["task"] for row in reported} == {SUITE, "arc_challenge", "gsm8k"}
    assert all(row["model"].startswith("paper") and row["delta_base"] == "" for row in reported)


@pytest.fixture(scope="module")
def swept(runs):
    """A lineage that was measured over temperatures."""
    return build_swept_lineage(runs, "swept").name


@pytest.mark.usefixtures("swept")
def test_a_frontier_is_a_table_that_fits_with_no_number_cut(shown):
    output = shown("swept", "--frontier")
    assert all(len(line) <= 80 for line in output.splitlines())
    rows = [line.split() for line in output.splitlines() if line.startswith(" θ_2")]
    assert rows[0][:2] == ["θ_2", "0.200±0.038"]
    assert rows[0][3].startswith("-0.02")
    assert rows[0][3].endswith("*")
    assert rows[1][1].endswith("*"), "below the control's curve too"
    assert "θ_2 at temperature 0.5 is below θ_0's curve over temperatures" in " ".join(output.split())


@pytest.mark.usefixtures("swept")
def test_a_lineage_without_a_frontier_is_told_how_to_measure_it(shown):
    output = shown("plain", "swept", "--frontier")
    assert "plain has no frontier: measure it with spin evaluate plain --set 'evaluate.frontier=[0.3, 0.5," in output
    assert "Frontier of swept" in output


def test_scores_by_source_are_tables_of_their_own(runs, shown):
    values = (tuple(range(16)), (*(value - 1 - value % 2 / 8 for value in range(8)), *range(8, 16)))
    build_lineage(runs, "mixed", nlls=values, sources=("chat",) * 8 + ("[sums]",) * 8)
    output = shown("mixed", "--sources")
    sums, chat = output.split("[sums], 8 prompts")[1].split("chat, 8 prompts")
    assert [line.split() for line in chat.splitlines() if "θ_1" in line] == [["θ_1", "◂", "2.44±0.86*"]]
    assert [line.split() for line in sums.splitlines() if "θ_1" in line] == [["θ_1", "◂", "11.50±0.87"]]
    assert max(map(len, output.splitlines())) <= 80
    assert "spin leaderboard mixed --sources" in " ".join(shown("mixed").split())
    assert "[sums]" not in shown("mixed"), "the leaderboard itself stays as it is"


def test_a_lineage_with_one_source_has_no_scores_by_source(shown):
    assert "--sources" not in shown("plain")
    assert "plain has no scores by source" in shown("plain", "--sources")
