"""A lineage whose versions have adapters: two iterations through every phase, and their export."""

import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from flows.command_line.main import main
from spin_core.config.resolve import resolve
from spin_core.data.tokenizer import load_tokenizer
from spin_core.lineage import phase_jobs, suite_jobs
from spin_core.lineage.history import record_iteration
from spin_core.lineage.start import start_lineage
from spin_core.models.files import is_stacked
from spin_core.models.loading import load_model
from spin_core.phases import base, evaluate, generate, pairs, prompts, score, train
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts, lock
from spin_core.store.records import (
    EvalReport,
    GateDecision,
    GenerationBatch,
    IterationArtifacts,
    ModelVersion,
    PairDataset,
    PromptSet,
    ScoredPairs,
    TrainRun,
)
from spin_core.training.losses import LOG_2
from tests.support.models.adapted import CPU, assert_same_logits

MODULES = {
    "base": (base, ModelVersion), "prompts": (prompts, PromptSet), "generate": (generate, GenerationBatch),
    "pairs": (pairs, PairDataset), "score": (score, ScoredPairs), "train": (train, TrainRun),
    "evaluate": (evaluate, EvalReport),
}  # fmt: skip


def run_phase(job):
    """Do a phase's job here."""
    module, record = MODULES[job.phase]
    return phase.execute(job, record, module.run, runtime_progress.Progress())


def run_iterations(runs, tiny_model, across):
    """Two iterations with adapters, through every phase but the gate."""
    config = resolve(
        "demo",
        sets=[
            f"model.path={tiny_model}", "model.device=cpu", "prompts.sample=24", "prompts.held_out=4",
            "generate.max_new_tokens=6", "train.batch_size=8", "train.epochs=4", "train.learning_rate=0.02",
            "train.lr_schedule=constant", f"train.lora={{rank: 2, across: {across}}}", "controls={}",
            "evaluate.frontier=[]",
        ],
    )  # fmt: skip
    with lock.locked(runs / "tale"):
        lineage = start_lineage(runs, "tale", config)
    opponent = theta_0 = run_phase(phase_jobs.base_job(lineage))
    data, previous, report = run_phase(phase_jobs.prompts_job(lineage, theta_0)), None, None
    for t in range(2):
        generations = run_phase(phase_jobs.generate_job(lineage, t, opponent, data))
        paired = run_phase(phase_jobs.pairs_job(lineage, t, data, generations, previous))
        scores = run_phase(phase_jobs.score_job(lineage, t, opponent, paired))
        trained_run = run_phase(phase_jobs.train_job(lineage, t, opponent, paired, scores))
        player = lineage.player(t)
        (job,) = suite_jobs.evaluate_jobs(lineage, player, data, report)
        report = run_phase(job)
        artifacts = IterationArtifacts(
            prompts=data, opponent=opponent, generations=generations, pairs=paired, scores=scores,
            train=trained_run, player=player, evaluations=(report,),
            gate=GateDecision(outcome="promote", reason="", next_opponent=t + 1),
        )  # fmt: skip
        record_iteration(lineage, t, artifacts)
        opponent, previous = player, generations
    return lineage


@pytest.mark.parametrize("across", ["merge", "stack"])
def test_two_iterations_with_adapters_run_and_are_exported(tmp_path, tiny_model, monkeypatch, across):
    from peft import PeftModel

    lineage = run_iterations(tmp_path / "runs", tiny_model, across)
    versions = [lineage.records()[0].opponent, *(record.player for record in lineage.records())]
    for record in lineage.records():
        assert record.train.first_loss == pytest.approx(LOG_2, abs=1e-5)
        assert record.train.metrics["loss"] < record.train.first_loss - 0.01
        assert artifacts.verify(record.player.path) == []
        assert is_stacked(record.player.path) == (across == "stack")
    monkeypatch.chdir(tmp_path)
    for form in ("merged", "adapter"):
        result = CliRunner().invoke(main, ["export", "tale", "1", "--format", form, "--runs", str(tmp_path / "runs")])
        assert (result.exit_code, result.output) == (0, f"θ_2 in tale-theta-2-{form}\n")
    player = load_model(versions[2].path, CPU)
    assert_same_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "tale-theta-2-merged"), player)
    load_tokenizer(tmp_path / "tale-theta-2-merged", CPU)
    onto = versions[0] if across == "stack" else versions[1]
    assert_same_logits(PeftModel.from_pretrained(load_model(onto.path, CPU), tmp_path / "tale-theta-2-adapter"), player)
