"""Which models answer in an iteration, and how that changes the fixed point."""

import pyarrow.parquet as pq
import pytest
import torch

from spin_core.config.generate import GenerateConfig
from spin_core.config.run import RunConfig
from spin_core.inference.worker import plan_shards
from spin_core.leaderboard.opponents import ancestors, answering_models
from spin_core.store.records import EvalReport, ModelVersion, Score
from spin_core.training.losses import spin_losses
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.generation import generate_job, prompt_set, rows_of, run_generation
from tests.support.lineages.small_jobs import version_of


def version(folder, t, parent):
    return ModelVersion(path=folder / f"{t}", digest=f"{t}" * 64, t=t, parent=parent and parent.digest)


@pytest.fixture
def versions(tmp_path):
    """θ_3 was trained from θ_1, since the gate turned θ_2 down."""
    start = version(tmp_path, 0, None)
    first = version(tmp_path, 1, start)
    second = version(tmp_path, 2, first)
    return {0: start, 1: first, 2: second, 3: version(tmp_path, 3, first)}


def reports_of(folder, values):
    score = {t: Score(value=value, stderr=0.1, n=9, higher_is_better=False) for t, value in enumerate(values)}
    fields = {"path": folder, "digest": "r", "suite": "self-play", "harness": "by hand"}
    return {t: (EvalReport(**fields, model=f"{t}", scores={"heldout_nll": value}),) for t, value in score.items()}


def config_with(**opponents) -> RunConfig:
    return RunConfig(recipe="demo", generate=GenerateConfig(opponents=opponents))


def test_by_default_only_the_opponent_answers(versions):
    assert answering_models(config_with(), versions[3], versions, {}) == ()
    assert answering_models(config_with(kind="mixture", history=1), versions[3], versions, {}) == ()
    assert answering_models(config_with(kind="mixture"), versions[0], {0: versions[0]}, {}) == ()


def test_a_mixture_is_of_the_versions_that_the_opponent_came_from(versions):
    assert ancestors(versions[3], versions) == (versions[3], versions[1], versions[0])
    assert answering_models(config_with(kind="mixture", history=2), versions[3], versions, {}) == (
        versions[3],
        versions[1],
    )
    assert answering_models(config_with(kind="mixture", history=9), versions[2], versions, {}) == tuple(
        versions[t] for t in (2, 1, 0)
    )


def test_the_best_of_history_is_the_best_by_the_main_metric(tmp_path, versions):
    reports = reports_of(tmp_path, [3.0, 1.0, 2.0, 1.5])
    assert answering_models(config_with(kind="best"), versions[3], versions, reports) == (versions[1],)
    assert answering_models(config_with(kind="best"), versions[1], versions, reports) == ()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions that say different things."""
    folder = tmp_path_factory.mktemp("models")
    return [version_of(save_tiny_model(folder / str(t), character_tokenizer(), seed=t), t) for t in (0, 1)]


def test_in_a_mixture_every_prompt_gets_the_answer_of_one_version(tmp_path, models):
    prompts = prompt_set(tmp_path / "prompts", rows=24)
    jobs = [
        generate_job(tmp_path / str(t), models[t].path, prompts, t=1).model_copy(update={"opponent": models[t]})
        for t in (0, 1)
    ]
    alone = {
        (t, row["id"], i): row["response_ids"]
        for t, job in enumerate(jobs)
        for i, row in enumerate(rows_of(run_generation(job)))
    }
    ids = pq.read_table(prompts.path / "train.parquet")["id"].to_pylist()
    mixed = jobs[1].model_copy(update={"output": tmp_path / "mixed", "answerers": (models[1], models[0])})
    record = run_generation(mixed)
    rows = rows_of(record)
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert min(record.opponents.values()) >= 6
    assert record.opponents == {str(t): sum(row["opponent"] == t for row in rows) for t in (0, 1)}
    assert record.opponent == models[1].digest
    for row in rows:
        assert row["response_ids"] in [
            alone[row["opponent"], row["id"], i] for i, id in enumerate(ids) if id == row["id"]
        ]
    for path in sorted(record.path.glob("shard-*.parquet")):  # so that a worker loads a version once
        assert len(set(pq.read_table(path)["opponent"].to_pylist())) == 1


def test_the_version_that_answers_depends_on_the_prompt_not_on_its_position(tmp_path, models):
    prompts = prompt_set(tmp_path / "prompts")
    job = generate_job(tmp_path / "x", models[0].path, prompts).model_copy(update={"answerers": tuple(models)})

    def chosen(ids, job=job):
        return {ids[place]: plan.version.t for plan in plan_shards(ids, job) for place in plan.prompts}

    ids = [f"{i}" for i in range(400)]
    assert chosen(ids) == chosen(ids[::-1])
    assert 160 < sum(chosen(ids).values()) < 240
    assert chosen(ids) != chosen(ids, job.model_copy(update={"t": 1}))
    assert chosen(ids) != chosen(ids, job.model_copy(update={"seed": 1}))


def test_against_answers_of_another_version_an_iteration_ends_at_the_documented_point():
    """The gradient of the exact expected loss is zero at p ∝ p_t (p_data/q)^{1/λ}, and nowhere near it."""
    generator = torch.Generator().manual_seed(0)
    p_t, p_data, q = torch.rand(3, 5, generator=generator, dtype=torch.float64).softmax(dim=1)
    beta = 0.5

    def gradient(logits):
        logits = logits.clone().requires_grad_()
        logps = logits.log_softmax(dim=0)
        real, generated = (part.flatten() for part in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
        losses = spin_losses(
            player_real_B=logps[real],
            player_generated_B=logps[generated],
            opponent_real_B=p_t.log()[real],
            opponent_generated_B=p_t.log()[generated],
            beta=beta,
            kind="logistic",
        )
        (p_data[real] * q[generated] * losses).sum().backward()
        return logits.grad.abs().max()

    end = p_t.log() + (p_data.log() - q.log()) / beta
    assert gradient(end) < 1e-12
    assert gradient(p_t.log() + (p_data.log() - p_t.log()) / beta) > 1e-3  # what it would be with q = p_t
