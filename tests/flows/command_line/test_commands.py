"""The command line, as far as it needs no Prefect server: what it prints, its exit status, its errors."""

import csv
import importlib.metadata
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from click.testing import CliRunner, Result
from small_lineage import build

from flows.command_line.main import main
from flows.command_line.printing.records import answer_rows
from spin_core.config.evaluate import SuiteName
from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import resolve
from spin_core.leaderboard.board import Board, leaderboard
from spin_core.lineage.lineage import Lineage
from spin_core.preflight.findings import Findings
from spin_core.store import lock
from spin_core.store.records import IterationRecord

COMMANDS = ["run", "next", "leaderboard", "show", "samples", "check", "verify", "export", "recipes", "up"]


@pytest.fixture(scope="module")
def game(tmp_path_factory) -> Lineage:
    """A finished lineage; tests must not change it."""
    return build(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def spin(game, monkeypatch):
    """`spin` in that lineage's runs folder, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SPIN_RUNS", str(game.runs))

    def call(*arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return call


def refusal(result: Result) -> str:
    """The one line that a user's mistake gives."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error  ")
    assert result.stdout == ""
    return line.removeprefix("error  ")


def test_a_shown_iteration_says_that_memory_ran_out_while_it_answered(game):
    batch = game.records()[0].generations
    assert "  memory" not in dict(answer_rows(batch))
    told = dict(answer_rows(batch.model_copy(update={"smallest_batch": 8})))
    assert told["  memory"] == "ran out; continued with 8 prompts at a time at the least"


def test_help_takes_less_than_half_a_second():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "flows.command_line", "--help"], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Self-play fine-tuning" in done.stdout
        # Processor time, since others may be using this machine.
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_commands_are_listed_in_the_order_of_use(spin):
    listed = spin("--help").output.split("Commands:\n")[1]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [name for name in names if name in COMMANDS] == COMMANDS
    assert names == list(main.commands)


@pytest.mark.parametrize("command", main.commands)
def test_every_command_says_what_it_is_for(spin, command):
    about = spin(command, "--help").output.split("Usage: ")[1].split("Options:")[0]
    assert about.strip().endswith(".")


def test_the_version_is_the_packages(spin):
    assert importlib.metadata.version("spin-loop") in spin("--version").output


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


def test_the_leaderboard_as_json_is_the_file(spin, game):
    printed = json.loads(spin("leaderboard", "tale", "--json").stdout)
    assert printed == json.loads((game.root / "leaderboard.json").read_text())
    assert Board.model_validate(printed) == leaderboard(game)
    assert json.loads(spin("leaderboard", "--json").stdout) == [printed]


def test_the_leaderboard_as_csv_has_a_line_a_score(spin, game):
    text = spin("leaderboard", "tale", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == sum(len(row.scores) for row in leaderboard(game).rows)
    assert rows[1] | {"value": "3.0"} == rows[1]
    assert (rows[1]["lineage"], rows[1]["model"], rows[1]["task"], rows[1]["n"]) == ("tale", "θ_1", "heldout_nll", "8")
    assert "\r" not in text


def test_the_leaderboard_of_an_empty_folder_says_how_to_begin(spin, tmp_path):
    assert "start one with spin run demo" in spin("leaderboard", "--runs", tmp_path).output
    assert json.loads(spin("leaderboard", "--json", "--runs", tmp_path).stdout) == []


def test_show_tells_what_an_iteration_was_made_from(spin, game):
    output = spin("show", "tale").output
    assert output.index("θ_0 → θ_1") < output.index("θ_1 → θ_2")
    for told in (
        "1 of 2; dropped: 1 empty",
        "promote: θ_1 plays next",
        "total 9.0",
        game.records()[0].player.digest[:12],
    ):
        assert told in output
    assert "θ_0 → θ_1" not in spin("show", "tale", 1).output


def test_show_as_json_is_the_records(spin, game):
    records = [IterationRecord.model_validate(value) for value in json.loads(spin("show", "tale", "--json").stdout)]
    assert records == game.records()
    assert IterationRecord.model_validate(json.loads(spin("show", "tale", 1, "--json").stdout)) == game.records()[1]


def test_samples_show_the_human_and_every_version(spin):
    output = spin("samples", "tale", "-n", 2).output
    for told in ("tell me a story", "<b>bold</b> | *stars*", "human", "early 0", "late 0 0", "late 1 0"):
        assert told in output
    assert "late 1 2" not in output


def test_samples_up_to_a_version(spin):
    found = json.loads(spin("samples", "tale", 1, "--json").stdout)
    assert len(found) == 4
    assert [answer["text"] for answer in found[0]["answers"]] == ["early 0", "late 0 0"]


def test_verify_says_that_a_lineage_is_whole(spin):
    assert spin("verify", "tale").stdout == "15 published folders of tale are whole, and its records agree with them\n"


def test_verify_finds_a_flipped_byte(spin, game, tmp_path):
    shutil.copytree(game.runs, tmp_path / "runs")
    path = tmp_path / "runs" / "tale" / "iter_00" / "generations" / "shard-00000.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    result = spin("verify", "tale", "--runs", tmp_path / "runs", status=1)
    assert result.stderr == f"damaged  {path}: changed since it was published\n"
    assert result.stdout == ""


@pytest.mark.parametrize("form", ["dpo", "spin"])
def test_pairs_are_exported_for_other_programs(spin, tmp_path, form):
    out = tmp_path / "pairs.jsonl"
    result = spin("export", "tale", 1, "--format", form, "-o", out)
    assert result.stdout == f"1 pairs in {out}\n"
    (row,) = map(json.loads, out.read_text().splitlines())
    assert set(row) == ({"prompt", "chosen", "rejected"} if form == "dpo" else {"real", "generated"})


def test_exported_pairs_have_a_name_of_their_own(spin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spin("export", "tale", 0, "--format", "dpo")
    assert [path.name for path in tmp_path.iterdir()] == ["tale-iteration-00-dpo.jsonl"]


def test_check_tells_what_is_ready_and_what_is_not(spin, tmp_path):
    ready = spin("check", "demo", "--set", "prompts.sample=64", "--runs", tmp_path / "runs")
    assert "ready: nothing stands in the way of the run" in ready.stdout
    assert not (tmp_path / "runs").exists()
    spoilt = spin("check", "demo", "--set", "prompts.max_prompt_tokens=3000", status=2)
    assert "not ready: 1 thing is wrong" in spoilt.stdout
    as_json = spin("check", "demo", "--set", "prompts.max_prompt_tokens=3000", "--json", status=2)
    findings = Findings.model_validate_json(as_json.stdout)
    assert [finding.subject for finding in findings.findings if finding.level == "wrong"] == ["context"]


def test_check_of_a_configuration_that_is_wrong_loads_nothing_heavy():
    code = (
        "import sys\nfrom flows.command_line.main import main\n"
        "try:\n    main(['check', 'demo', '--set', 'train.betta=1'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "did you mean beta?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "demmo"], "there is no recipe 'demmo'; did you mean demo?"),
        (["run", "demo", "--set", "train.betta=1"], "train.betta is no setting; did you mean beta?"),
        (["run", "demo", "--set", "train.beta=-1"], "train.beta cannot be -1: input should be greater than 0"),
        (["run", "demo", "--set", "train.beta"], "--set 'train.beta' has no value"),
        (["run", "demo", "--iterations", "0"], "iterations cannot be 0: input should be greater than 0"),
        (["run", "demo", "--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read (No such file or directory)"),
        (["run", "demo", "--lineage", "../up"], "'../up' cannot name a lineage"),
        (["run", "demo", "--lineage", "tale", "--set", "seed=9"], "lineage tale was started with "),
        (["compare", "demo", "--set", "push.url=nowhere://x"], "nowhere"),
        (["next", "none"], "there is no lineage 'none' in "),
        (["show", "none"], "there is no lineage 'none' in "),
        (["show", "tale", "7"], "lineage tale has no finished iteration 7 (there: 0 to 1)"),
        (["samples", "none"], "there is no lineage 'none' in "),
        (["leaderboard", "tale", "none"], "there is no lineage 'none' in "),
        (["verify", "a/b"], "'a/b' cannot name a lineage"),
        (["export", "tale", "9", "--format", "dpo"], "lineage tale has no finished iteration 9"),
        (["export", "tale", "0", "--format", "dpo", "-o", "x.csv"], "x.csv cannot be written: give it the suffix"),
        (["recipes", "none"], "there is no recipe 'none'"),
        (["check", "none"], "there is no recipe 'none'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(spin, arguments, says):
    assert says in refusal(spin(*arguments, status=2))


def test_the_refusals_change_nothing(spin, game):
    before = (game.root / "lineage.json").read_bytes()
    spin("run", "demo", "--lineage", "tale", "--set", "seed=9", status=2)
    assert (game.root / "lineage.json").read_bytes() == before


@pytest.mark.parametrize("command", [["run", "demo", "--lineage", "tale"], ["next", "tale"]])
def test_a_lineage_in_use_names_its_holder(spin, game, command):
    with lock.locked(game.root):
        line = refusal(spin(*command, status=2))
    assert line.startswith(f"lineage tale is in use by process {os.getpid()} on ")


def test_a_broken_settings_file_is_one_line(spin, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: [unclosed")
    assert "is neither YAML nor TOML" in refusal(spin("run", "demo", "--config", file, status=2))


def test_a_runs_folder_below_a_file_is_one_line(spin, tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal(spin("run", "demo", "--runs", tmp_path / "file" / "runs", status=2))
    assert "a file stands in its way" in line


def test_a_damaged_lineage_is_one_line(spin, game, tmp_path):
    shutil.copytree(game.runs, tmp_path / "runs")
    (tmp_path / "runs" / "tale" / "lineage.json").write_text("{")
    assert "lineage.json is damaged" in refusal(spin("show", "tale", "--runs", tmp_path / "runs", status=2))


def test_an_argument_that_click_refuses_is_status_2(spin):
    assert "Missing argument" in spin("run", status=2).stderr
    assert "No such command" in spin("ruin", status=2).stderr


def test_the_installed_command_is_this_one(game):
    command = Path(sys.executable).with_name("spin")
    if not command.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [command, "verify", "tale", "--runs", game.runs], capture_output=True, text=True, check=True, cwd=game.runs
    )
    assert "are whole" in done.stdout


def test_the_help_of_evaluate_names_every_suite(spin):
    said = " ".join(spin("evaluate", "--help").stdout.split())
    for name in get_args(SuiteName):
        assert name.removesuffix("-quick") in said
    assert "-quick" in said
    assert "self-play" in said
