"""A lineage that commit 03bedde published: today's code reads it, verifies it, reuses it, and continues it.

The folder `fixtures/lineages/03bedde` says how it was made. Every test works on a copy, so its recorded paths, which
are those of the machine that made it, never exist.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.lineage import control_jobs, controls, phase_jobs, rescore, suite_jobs
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage, trained_model
from spin_core.lineage.verify import verify
from spin_core.runtime import launch
from spin_core.store.artifacts import read_manifest, read_record, reusable
from spin_core.store.artifacts import verify as verify_folder
from spin_core.store.identity import MANIFEST, current_identity, digest_of, identity_of
from spin_core.store.job_types import JOB_TYPES
from spin_core.store.jobs import Job
from spin_core.store.records import (
    Artifact,
    EvalReport,
    GenerationBatch,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    TrainRun,
)
from tests.support.helpers import ROOT, SUPPORT

R = TypeVar("R", bound=Artifact)

PUBLISHED = ROOT / "tests" / "fixtures" / "lineages" / "03bedde"
ONE_PROCESS = SUPPORT / "processes" / "one_process.py"
NAME = "tiny"
SETTINGS = {
    "sft": {"hidden_size": 8, "intermediate_size": 16, "layers": 1, "train": {"epochs": 1}},
    "prompts": {"sample": 48, "held_out": 8},
    "generate.shard_size": 20,
    "pairs.mix_previous": True,
    "train": {"epochs": 1, "batch_size": 16},
    "gate.rule": "always",
    "evaluate.frontier": [],
    "metrics.sinks": [],
    "controls": {
        "sft_learning_rate": [0.001],
        "temperatures": [],
        "dpo": {"source": {"path": "demo"}, "sample": 16},
    },
}
"""The settings of the command that made the lineage."""

VERSIONS = ["θ_0", "θ_1", "θ_2"]
STEPS = 9
CONTROLS = {f"sft-lr-0.001-steps-{STEPS}", "dpo-beta-0.1-lr-0.001-epochs-1"}


def copy_to(runs: Path) -> Lineage:
    """A copy of the published lineage in a runs folder."""
    shutil.copytree(PUBLISHED, runs, ignore=shutil.ignore_patterns("README.md"))
    return find_lineage(runs, NAME)


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    """A copy that a test may change."""
    return copy_to(tmp_path / "runs")


def spin(lineage: Lineage, *arguments: str) -> str:
    """The standard output of a `spin` command on the copy."""
    result = CliRunner().invoke(main, [*arguments, "--runs", str(lineage.runs)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def published(runs: Path) -> list[Path]:
    """Every published folder, those that lineages share included."""
    return sorted(path.parent for path in runs.rglob(MANIFEST))


def contents(runs: Path) -> dict[Path, tuple[int, bytes]]:
    """The files of all published folders: when each was written, and its bytes."""
    files = [path for folder in published(runs) for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# Read.


def test_every_record_loads_with_the_paths_that_its_files_have_now(lineage):
    records = lineage.records()
    assert [record.t for record in records] == [0, 1]
    assert [record.player.t for record in records] == [1, 2]
    for record in records:
        named = [record.prompts, record.opponent, record.generations, record.pairs, record.scores, record.train]
        for artifact in (*named, record.player, *record.evaluations):
            assert artifact.path.is_relative_to(lineage.runs)
            assert read_record(artifact.path, type(artifact)) == artifact
        assert "03bedde" in record.environment["spin"]


def test_every_manifest_holds_a_record_that_loads(lineage):
    assert len(published(lineage.runs)) == 26
    for folder in published(lineage.runs):
        assert read_record(folder, Artifact) is not None


def test_every_job_file_is_a_job_of_today_with_the_identity_that_was_published(lineage):
    files = sorted(lineage.runs.rglob("jobs/*.json"))
    assert len(files) == 20
    for path in files:
        values = json.loads(path.read_text("utf-8"))
        job = JOB_TYPES[values["phase"]].model_validate(values)
        manifest = read_manifest(path.parents[1] / path.stem)
        assert manifest is not None
        assert identity_of(job) == current_identity(manifest["identity"])


def test_the_leaderboard_has_its_versions_and_controls_with_the_published_scores(lineage):
    board = json.loads(spin(lineage, "leaderboard", NAME, "--json"))
    assert [row["name"] for row in board["rows"]] == VERSIONS
    assert {row["name"] for row in board["controls"]} == CONTROLS
    for row in (*board["rows"][1:], *board["controls"]):
        assert row["differences"]
    for row, record in zip(board["rows"][1:], lineage.records(), strict=True):
        (report,) = record.evaluations
        assert row["scores"] == report.model_dump(mode="json")["scores"]
        assert row["scores"]["heldout_nll"]["n"] == 8
    table = spin(lineage, "leaderboard", NAME, "--all")
    assert all(name in table for name in (*VERSIONS, *CONTROLS))


def test_show_lists_both_iterations(lineage):
    shown = spin(lineage, "show", NAME)
    assert "θ_0 → θ_1" in shown
    assert "θ_1 → θ_2" in shown
    assert json.loads(spin(lineage, "show", NAME, "--json")) == [
        record.model_dump(mode="json") for record in lineage.records()
    ]


@pytest.mark.parametrize(("part", "prompts", "answers"), [("--held-out", 8, 3), ("--train", 48, 2)])
def test_samples_have_the_answers_of_every_version(lineage, part, prompts, answers):
    samples = json.loads(spin(lineage, "samples", NAME, part, "--json"))
    assert len(samples) == prompts
    assert {len(sample["answers"]) for sample in samples} == {answers}
    assert spin(lineage, "samples", NAME, part, "-n", "2")


# Verify.


def test_verify_finds_everything_whole(lineage):
    assert f"published folders of {NAME} are whole" in spin(lineage, "verify", NAME)
    for folder in published(lineage.runs):
        assert verify_folder(folder) == []


def test_verify_finds_one_flipped_byte_in_a_weight(lineage):
    path = lineage.iteration(1) / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert verify(lineage)[0] == [f"{path}: changed since it was published"]


# Reuse.


def test_the_job_that_every_phase_gets_today_is_found_finished(lineage):
    """The flow's walk through a lineage, with a look at the disk in place of each phase."""
    outputs = list[Path]()

    def finished(job: Job, kind: type[R]) -> R:
        record = launch.finished_record(job, kind)
        assert record is not None, f"{job.output} would be built again"
        outputs.append(job.output)
        return record

    def evaluate(model: ModelVersion, against: EvalReport | None = None, folder: Path | None = None) -> EvalReport:
        (job,) = suite_jobs.evaluate_jobs(lineage, model, prompts, against, folder)
        assert rescore.changed_settings(job) == "", "it would be scored again"
        return finished(job, EvalReport)

    untrained = finished(phase_jobs.base_job(lineage), ModelVersion)
    prompts = finished(phase_jobs.prompts_job(lineage, untrained), PromptSet)
    finished(phase_jobs.sft_job(lineage, untrained, prompts), TrainRun)
    base = opponent = phase_jobs.sft_model(lineage, untrained, prompts)
    base_report = report = evaluate(base)
    previous = None
    for t in range(2):
        generations = finished(phase_jobs.generate_job(lineage, t, opponent, prompts), GenerationBatch)
        pairs = finished(phase_jobs.pairs_job(lineage, t, prompts, generations, previous, None), PairDataset)
        scores = finished(phase_jobs.score_job(lineage, t, opponent, pairs, base), ScoredPairs)
        finished(phase_jobs.train_job(lineage, t, opponent, pairs, scores), TrainRun)
        opponent, previous = lineage.player(t), generations
        report = evaluate(opponent, report)
    records = lineage.records()
    for control in controls.plan(lineage, records):
        pairs = scores = None
        if control.learns_from == "preferences":
            pairs = finished(control_jobs.preferences_job(lineage, control, base, prompts), PairDataset)
            scores = finished(control_jobs.score_job(lineage, control, base, pairs), ScoredPairs)
        finished(control_jobs.train_job(lineage, control, base, prompts, pairs, scores), TrainRun)
        folder = lineage.control(control.name)
        evaluate(trained_model(folder / "model"), base_report, folder / "eval")

    weights = {folder for folder in published(lineage.runs) if folder.name == "model"}
    diagnostics = set(published(lineage.runs / suite_jobs.SCORES))
    assert {*outputs, *weights, *diagnostics} == set(published(lineage.runs)), "no folder was left out"


def test_diagnostics_of_the_base_model_are_found_by_other_lineages(lineage):
    """As an evaluation looks for them: they are kept below the runs folder by the identity of its job."""
    record = lineage.records()[0]
    (job,) = suite_jobs.evaluate_jobs(lineage, record.opponent, record.prompts, None)
    identity = identity_of(job)
    entry = lineage.runs / suite_jobs.SCORES / digest_of(identity)[:16]
    assert reusable(entry / "self-play", identity, EvalReport) is not None


# The whole flow, twice: in a copy that is complete, and then in one that has lost its last training.


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A copy for the flow: with one runs folder, Prefect's database is made once."""
    return copy_to(tmp_path_factory.mktemp("played") / "runs")


def run_phases(lineage: Lineage, **changes: object) -> Iterator[tuple[str, str]]:
    """Run `spin run` with the settings that made the lineage: what it did (`done`, `reused`), and to which phase."""
    sets = [f"--set={name}={json.dumps(value)}" for name, value in {**SETTINGS, **changes}.items()]
    command = [sys.executable, str(ONE_PROCESS), "run", "demo", "--lineage", NAME, "--iterations", "2", *sets]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    result = subprocess.run(
        [*command, "--runs", str(lineage.runs)], env=kept, capture_output=True, text=True, check=False, timeout=560
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for line in result.stdout.splitlines():
        what, _, phase = line.partition(" ")
        if what in ("done", "reused"):
            yield what, phase.strip()


@pytest.mark.slow
def test_a_run_with_the_same_settings_reuses_every_phase_and_changes_no_published_file(copied):
    before, records = contents(copied.runs), copied.records()
    done = list(run_phases(copied))
    assert {what for what, _ in done} == {"reused"}
    assert len(done) == 20
    assert contents(copied.runs) == before
    assert copied.records() == records


@pytest.mark.slow
def test_a_frontier_is_measured_in_addition_and_changes_no_published_file(tmp_path):
    lineage = copy_to(tmp_path / "runs")
    before, records = contents(lineage.runs), lineage.records()
    done = list(run_phases(lineage, **{"evaluate.frontier": [0.3, 0.5, 0.7, 0.9]}))
    titles = [phase.split("  ")[0] for what, phase in done if what == "done"]
    folders = ["base", "iter 00", "iter 01", *sorted(CONTROLS)]
    assert sorted(titles) == sorted(f"{folder} · evaluate frontier" for folder in folders)
    assert len(done) == 20 + len(folders)
    now = contents(lineage.runs)
    assert {path: now[path] for path in before} == before
    for record, earlier in zip(lineage.records(), records, strict=True):
        *others, frontier = record.evaluations
        assert tuple(others) == earlier.evaluations
        assert frontier.suite == "frontier"
    board = json.loads(spin(lineage, "leaderboard", NAME, "--json"))
    assert [row["name"] for row in board["frontier"]["rows"]] == [*VERSIONS, *sorted(CONTROLS)]


@pytest.mark.slow
def test_a_run_continues_from_what_is_left_of_the_lineage(copied):
    last = copied.iteration(1)
    for name in ("train", "model", "eval"):
        shutil.rmtree(last / name)
    (last / "record.json").unlink()
    before, pairs = contents(copied.runs), copied.iteration(1) / "pairs"
    done = [phase for what, phase in run_phases(copied) if what == "done"]
    assert [phase.split("  ")[0] for phase in done] == ["iter 01 · train", "iter 01 · evaluate self-play"]
    now = contents(copied.runs)
    assert {path: now[path] for path in before} == before
    record = copied.records()[1]
    assert record.pairs == read_record(pairs, PairDataset)
    assert record.train.first_loss == pytest.approx(math.log(2), abs=1e-3), "the scores on disk are the opponent's"
    assert verify(copied)[0] == []
