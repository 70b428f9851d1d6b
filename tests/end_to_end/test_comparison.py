"""Comparisons, and scoring after a run, through the command line and a real Prefect server."""

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spin_core.comparison.compare import Table
from spin_core.lineage.controls import TIMING
from spin_core.lineage.find import find_lineage

pytestmark = pytest.mark.slow

CONTROLS = {
    "sft_learning_rate": [1e-3],
    "dpo": {"source": {"path": "demo"}, "sample": 200, "learning_rate": 1e-3},
    "shares": [0.5],
    "temperatures": [],
}
FEW = "sft-steps,sft-tokens,longer"
MOMENTS = (
    "seed-1/iter_00/.train.partial",  # during a training of the run
    "seed-1/controls/epochs-4/model",  # a control is trained, and not scored yet
    "seed-2/iter_00/generations/manifest.json",  # the second run has begun
)


def arguments(player, name: str, *more: str) -> list[str]:
    sets = [word for word in player.arguments(name) if word.startswith("--set=") and "controls" not in word]
    options = ["--name", name, "--seeds", "2", "--iterations", "1"]
    return ["compare", "demo", *options, *sets, f"--set=controls={json.dumps(CONTROLS)}", *more]


@pytest.fixture(scope="module")
def compared(player_in, server_url, tmp_path_factory):
    """A comparison `whole` of two seeds, with some methods."""
    player = player_in(tmp_path_factory.mktemp("compared"), server_url)
    player.spin(*arguments(player, "whole", "--methods", FEW), one_process=True)
    return player


@pytest.fixture(scope="module")
def standing(compared) -> Table:
    """Its table."""
    return table(compared, "whole")


@pytest.fixture(scope="module")
def everything(compared, standing) -> Table:  # noqa: ARG001 (which is read before it is overwritten)
    """The table of the first seed alone, with every method."""
    compared.spin(*arguments(compared, "whole", "--seeds", "1"), one_process=True)
    return table(compared, "whole")


def table(player, name: str) -> Table:
    return Table.model_validate_json((player.runs / name / "compare.json").read_text())


def seen(folder: Path) -> list[int]:
    """Tokens that each step of a training saw."""
    return [json.loads(line)["tokens"] for line in (folder / TIMING).read_text().splitlines()]


def test_seeds_have_the_same_start_and_different_answers_and_trainings(compared, standing):
    records = [find_lineage(compared.runs, name).records()[0] for name in standing.lineages]
    assert len({record.opponent.digest for record in records}) == 1
    assert len({record.prompts.digest for record in records}) == 1
    first, second = (compared.digests(f"whole-seed-{seed}") for seed in (1, 2))
    different = {name for name in first if name.endswith(("generations", "/model")) and name in second}
    assert {"iter_00/generations", "iter_00/model", "controls/epochs-4/model"} <= different
    assert not [name for name in different if first[name] == second[name]]
    start = next(line for line in standing.lines if line.name == "θ_0")
    assert len(set(start.values["heldout_nll"])) == 1
    assert (compared.runs / "whole" / "report.html").stat().st_size > 10_000


def test_equal_steps_and_equal_tokens_are_equal(compared, standing):
    for name in standing.lineages:
        root = compared.runs / name
        spin_items = seen(root / "iter_00" / "train")
        (by_steps,) = root.glob("controls/sft-*-steps-*/train")
        (by_tokens,) = root.glob("controls/sft-*-tokens-*/train")
        assert len(seen(by_steps)) == len(spin_items)
        assert abs(sum(seen(by_tokens)) - sum(spin_items)) <= max(seen(by_tokens)) / 2
        # SPIN sees two responses to each prompt, so this is another budget.
        assert len(seen(by_tokens)) > len(spin_items) + 1
    steps, tokens, spin = (next(row for row in standing.lines if row.name.startswith(name)) for name in (
        "SFT, equal steps", "SFT, equal tokens", "θ_1",
    ))  # fmt: skip
    assert steps.steps == spin.steps
    assert all(abs(mine / other - 1) < 0.05 for mine, other in zip(tokens.tokens, spin.tokens, strict=True))


@pytest.mark.slow
def test_every_method_starts_from_the_same_model(compared, everything):
    methods = ["spin", "spin", "sft-steps", "sft-tokens", "dpo", "spin-dpo", "longer", "sizes", "sizes", "sizes"]
    assert [line.method for line in everything.lines] == methods
    assert all("total_variation" in line.scores for line in everything.lines)
    root = compared.runs / "whole-seed-1"
    (dpo,), (after,) = root.glob("controls/dpo-*"), root.glob("controls/spin-1-dpo-*")
    assert len(seen(dpo / "train")) == len(seen(root / "iter_00" / "train"))
    starts = [
        json.loads((folder / "model" / "manifest.json").read_text())["identity"]["start"] for folder in (dpo, after)
    ]
    record = find_lineage(compared.runs, "whole-seed-1").records()[0]
    assert starts == [record.opponent.digest, record.player.digest]


@pytest.mark.slow
def test_a_share_of_the_prompts_is_the_same_for_spin_and_for_fine_tuning(compared, everything):
    assert everything.prompts == 96
    root = compared.runs / "whole-seed-1" / "controls"
    spin, sft, whole = (
        sum(seen(root / name / "train")) for name in ("share-0.5", "sft-lr-0.001-share-0.5", "sft-lr-0.001-share-1")
    )
    assert 0.25 * whole < sft < 0.75 * whole
    assert 0.5 * sft < spin / 2 <= sft * 1.1  # two responses to a prompt, less those that the filters drop


def test_a_comparison_run_again_reuses_everything_and_gives_the_same_table(compared, standing):
    stamps = compared.stamps("whole-seed-1") | compared.stamps("whole-seed-2")
    out = compared.spin(*arguments(compared, "whole", "--methods", FEW)).stdout
    assert not [line for line in out.splitlines() if line.startswith("done")]
    assert "SPIN compared: whole" in out
    assert table(compared, "whole") == standing
    assert compared.stamps("whole-seed-1") | compared.stamps("whole-seed-2") == stamps


@pytest.mark.slow
def test_a_comparison_killed_again_and_again_ends_in_the_same_table(compared, standing):
    for moment in MOMENTS:
        process = subprocess.Popen(
            compared.command(*arguments(compared, "killed", "--methods", FEW)),
            env=replace(compared, api="").environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 200
        while not (compared.runs / f"killed-{moment}").exists():
            assert process.poll() is None, f"the run ended before {moment}: {process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    compared.spin(*arguments(compared, "killed", "--methods", FEW))
    killed = table(compared, "killed")
    assert killed.model_copy(update={"name": standing.name, "lineages": standing.lineages}) == standing


def test_a_method_without_its_data_is_rejected_before_compute_or_left_out_with_a_note(compared):
    refused = compared.spin("compare", "demo", "--name", "no", "--methods", "dpo", check=False)
    assert refused.returncode == 2
    assert "set controls.dpo.source.path to a file" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not list(compared.runs.glob("no*"))


def test_versions_are_scored_afterwards_and_never_twice(compared):
    refused = compared.spin("evaluate", "whole-seed-1", "--set=evaluate.temperature=0.3", check=False)
    assert refused.returncode == 2
    assert "temperature = 0.5, not 0.3" in refused.stderr
    assert "spin next whole-seed-1" in refused.stderr
    out = compared.spin("evaluate", "whole-seed-1", "1", "--suite", "self-play").stdout
    assert not [line for line in out.splitlines() if line.startswith("done")]
    assert "θ_1" in out


def test_a_suite_that_is_added_later_is_scored_for_controls_too(compared):
    root = compared.runs / "whole-seed-1"
    before = compared.digests("whole-seed-1")
    lost = sorted(root.glob("controls/*/eval/self-play"))
    assert any(path.parents[1].name.startswith("sft-") for path in lost)
    for path in lost:
        shutil.rmtree(path)
    out = compared.spin("evaluate", "whole-seed-1", "--suite", "self-play", one_process=True).stdout
    names = [path.parents[1].name for path in lost]
    assert "also scored: " in out
    assert all(name in " ".join(out.split("also scored: ")[1].split()) for name in names)
    assert compared.digests("whole-seed-1") == before
    board = json.loads((root / "leaderboard.json").read_text())
    assert {row["name"] for row in board["controls"]} == set(names)


def test_a_model_outside_of_lineages_is_scored_and_listed_on_the_leaderboard(compared):
    folder = compared.runs / "whole-seed-1" / "iter_00" / "model"
    sets = [word for word in compared.arguments("whole") if word.startswith("--set=prompts")]
    named = ["--recipe", "demo", "--lineage", "mine", "--suite", "self-play"]
    out = compared.spin("evaluate", str(folder), *named, *sets, one_process=True).stdout
    assert "θ_0" in out
    mine, whole = json.loads(compared.spin("leaderboard", "mine", "whole-seed-1", "--json").stdout)
    assert [row["t"] for row in mine["rows"]] == [0]
    assert mine["rows"][0]["scores"]["total_variation"] == whole["rows"][1]["scores"]["total_variation"]


def test_settings_of_evaluation_may_change_and_then_all_versions_are_scored_by_them(compared, tmp_path):
    player = replace(compared, runs=tmp_path)
    for name in ("whole-seed-1", ".sft"):
        shutil.copytree(compared.runs / name, tmp_path / name)
    before = player.digests("whole-seed-1")
    out = player.spin("next", "whole-seed-1", "--set=evaluate.temperature=0.9", one_process=True).stdout
    assert "base · self-play is scored again: config.temperature = 0.5, not 0.9" in " ".join(out.split())
    after = player.digests("whole-seed-1")
    scored = {name for name in before if "/eval/" in name}
    assert {name: before[name] for name in before.keys() - scored}.items() <= after.items()
    for name in ("base/eval/self-play", "iter_00/eval/self-play"):
        assert after[name] != before[name]
        (kept,) = (digest for path, digest in after.items() if path.startswith(name.replace("self-play", ".earlier/")))
        assert kept == before[name]
    board = json.loads((tmp_path / "whole-seed-1" / "leaderboard.json").read_text())
    assert [row["name"] for row in board["rows"]] == ["θ_0", "θ_1", "θ_2"]
    assert board["controls"] == [], "they were scored at another temperature"
    settings = [
        record.scored_with["self-play"]["config"] for record in find_lineage(tmp_path, "whole-seed-1").records()
    ]
    assert [setting["temperature"] for setting in settings] == [0.9, 0.9]
    assert "are whole" in player.spin("verify", "whole-seed-1").stdout
