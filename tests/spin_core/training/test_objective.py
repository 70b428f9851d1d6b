"""Each loss as the training loop uses it."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spin_core.config.train import TrainConfig
from spin_core.training.losses import LOG_2
from spin_core.training.objective import objective_of
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_jobs import random_pairs, run_job, score_job, token_ids, train_job, version_of

GAMES = ("logistic", "hinge", "exponential", "correlation", "space")
PLAYER = torch.tensor([[-4.0, -9.0, -2.0], [-5.0, -8.0, -2.5], [-6.0, -7.0, -3.0]])
OPPONENT = torch.tensor([[-5.0, -8.0, -2.0], [-4.0, -9.0, -2.0]])
TOKENS = torch.tensor([[4, 3, 2], [5, 2, 1], [6, 6, 6]])


def make_objective(t: int = 1, **settings):
    return objective_of(TrainConfig(**settings), t)


def all_losses(objective) -> torch.Tensor:
    return objective.losses(PLAYER[: objective.sides], OPPONENT, TOKENS[: objective.sides])


@pytest.mark.parametrize(
    ("settings", "t", "sides"),
    [
        ({"loss": "sft"}, -1, 1),
        ({}, 0, 2),
        ({"loss": "space"}, 3, 2),
        ({"loss": "t-spin"}, 0, 2),
        ({"loss": "t-spin"}, 1, 3),
        ({"loss": "t-spin", "t_spin_weight": 0.0}, 1, 2),
        ({"loss": "t-spin", "t_spin_weight": (0.1, 0.1, 0.0)}, 2, 2),
    ],
)
def test_how_many_responses_a_loss_reads(settings, t, sides):
    assert make_objective(t, **settings).sides == sides


@pytest.mark.parametrize("loss", [*GAMES, "t-spin", "sft"])
def test_a_batchs_loss_is_the_same_however_it_is_divided(loss):
    objective = make_objective(loss=loss, nll_weight=0.5)
    whole = objective.metrics(PLAYER[: objective.sides], OPPONENT, TOKENS[: objective.sides])["loss"].item()
    denominator = objective.denominator(TOKENS[: objective.sides].numpy())
    parts = [
        objective.losses(PLAYER[: objective.sides, [i]], OPPONENT[:, [i]], TOKENS[: objective.sides, [i]]).sum().item()
        / denominator
        for i in range(3)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


def test_sft_is_the_mean_over_the_real_responses_tokens_and_takes_no_second_nll():
    objective = make_objective(loss="sft", nll_weight=3.0)
    assert objective.denominator(TOKENS.numpy()[:1]) == 9
    metrics = objective.metrics(PLAYER[:1], None, TOKENS[:1])
    assert {name: value.item() for name, value in metrics.items()} == {"loss": pytest.approx(15 / 9), "logps/real": -5}


def test_the_distance_of_player_and_opponent_is_a_tokens_for_every_beta():
    for settings in ({"beta": 0.1}, {"beta": 5.0}, {"loss": "t-spin"}):
        assert make_objective(**settings).distance(PLAYER, OPPONENT, TOKENS).item() == pytest.approx(4.5 / 17)
    assert make_objective(anchor=0.5).distance(PLAYER, OPPONENT, TOKENS) is None


@pytest.mark.parametrize("loss", GAMES)
@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_the_first_loss_is_fixed_where_the_player_equals_its_opponent(loss, nll_weight):
    objective = make_objective(loss=loss, nll_weight=nll_weight, beta=3.0, space_mu=2.0)
    metrics = objective.metrics(OPPONENT, OPPONENT, TOKENS[:2])
    assert objective.loss_without_nll({name: value.item() for name, value in metrics.items()}) == pytest.approx(
        objective.first_loss
    )
    want = {"logistic": LOG_2, "space": math.log(3) + 2 * math.log(1.5)}.get(loss, 1.0)
    assert objective.first_loss == pytest.approx(want, rel=1e-15)


def test_the_first_loss_is_not_fixed_without_a_reference_or_with_another_than_the_opponent():
    assert make_objective(loss="t-spin").first_loss is None
    assert make_objective(loss="sft").first_loss is None
    assert make_objective(1, anchor=0.3).first_loss is None
    assert make_objective(0, anchor=0.3).first_loss == LOG_2  # The opponent is θ_0 itself.


def test_the_nll_is_added_and_reported():
    plain, with_nll = make_objective(), make_objective(nll_weight=0.5)
    nll = torch.tensor([4 / 4, 9 / 3, 2 / 2])
    torch.testing.assert_close(all_losses(with_nll), all_losses(plain) + 0.5 * nll)
    metrics = with_nll.metrics(PLAYER[:2], OPPONENT, TOKENS[:2])
    assert metrics["nll"].item() == pytest.approx(5 / 3)
    assert "nll" not in plain.metrics(PLAYER[:2], OPPONENT, TOKENS[:2])


def test_t_spin_needs_no_reference_and_reports_its_terms():
    objective = make_objective(loss="t-spin", beta=1.0, t_spin_weight=0.2)
    losses = objective.losses(PLAYER, None, TOKENS)
    current = [math.log1p(math.exp(-margin)) for margin in (1.0, -1.0, 0.5)]
    history = [math.log1p(math.exp(-margin)) for margin in (1.0, -1.0, 0.5)]
    torch.testing.assert_close(losses, torch.tensor(current) + 0.2 * torch.tensor(history))
    metrics = objective.metrics(PLAYER, OPPONENT, TOKENS)
    assert metrics["history"].item() == pytest.approx(np.mean(history))
    assert metrics["logps/initial"].item() == pytest.approx(-16 / 3)
    # Rewards are measured against the opponent, as every loss's are, where it has been scored.
    assert metrics["rewards/real"].item() == pytest.approx(0.0)
    assert objective.metrics(PLAYER, None, TOKENS)["rewards/real"].item() == pytest.approx(-5.0)


def test_metrics_keep_their_names_and_order():
    rewards = ["rewards/real", "rewards/generated", "rewards/margins", "rewards/accuracies"]
    names = ["loss", *rewards, "logps/real", "logps/generated", "length_correlation"]
    assert list(make_objective().metrics(PLAYER[:2], OPPONENT, TOKENS[:2])) == names


def test_schedules_have_their_value_of_the_iteration():
    objective = make_objective(
        2, beta=(0.1, 0.2, 0.4), nll_weight=(0.0, 1.0), anchor=(0.1, 0.2, 0.3), space_mu=(1.0, 2.0)
    )
    assert (objective.beta, objective.nll_weight, objective.anchor, objective.space_mu) == (0.4, 1.0, 0.3, 2.0)
    assert make_objective(-1, loss="sft", beta=(0.1, 0.2)).beta == 0.1


def test_the_reference_is_read_from_the_scores_and_anchored_if_configured(tmp_path):
    path = tmp_path / "logps.parquet"
    columns = {"real_logps": [-1.0, -2.0], "generated_logps": [-3.0, -4.0]}
    base = {"real_base_logps": [-2.0, -4.0], "generated_base_logps": [-7.0, -4.0]}
    pq.write_table(pa.table({name: pa.array(v, pa.float32()) for name, v in {**columns, **base}.items()}), path)
    torch.testing.assert_close(make_objective().read_reference(path), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]))
    anchored = make_objective(1, anchor=0.25).read_reference(path)
    torch.testing.assert_close(anchored, torch.tensor([[-1.25, -2.5], [-4.0, -4.0]]))
    torch.testing.assert_close(
        make_objective(0, anchor=0.25).read_reference(path), make_objective().read_reference(path)
    )


def trained(folder, tiny_model, t: int, **config):
    """Training of a θ_t that is not θ_0, with θ_0's answers and scores."""
    start, base = version_of(tiny_model, t), version_of(save_tiny_model(folder / "base", character_tokenizer(), seed=1))
    pairs = random_pairs(folder / "pairs")
    path = pairs.path / "pairs.parquet"
    initial = pa.array(token_ids(np.random.default_rng(5), pairs.rows, 2, 9), pa.list_(pa.int32()))
    pq.write_table(pq.read_table(path).append_column("initial_ids", initial), path)
    scores = run_job(score_job(folder / "scores", start, pairs, base=base))
    return run_job(train_job(folder, start, pairs, scores, epochs=3, learning_rate=3e-3, **config))


@pytest.mark.parametrize(
    "config",
    [
        *({"loss": loss, "beta": 0.5} for loss in GAMES),
        {"nll_weight": 0.5},
        {"anchor": 0.4},
        {"loss": "t-spin", "beta": 0.1},
        {"loss": "t-spin", "beta": 0.1, "speed": {"packing": False}},
        {"loss": "t-spin", "beta": 0.1, "speed": {"cached_scores": False}},
        {"loss": "t-spin", "beta": 0.1, "held_out": 0.25, "evaluate_every": 2, "keep_best": "loss"},
    ],
    ids=str,
)
def test_every_objective_trains_a_real_model(tmp_path, tiny_model, config):
    record = trained(tmp_path, tiny_model, 1, **config)
    assert record.metrics["loss"] < record.first_loss
    assert record.metrics["rewards/margins"] > 0
    assert record.metrics["rewards/accuracies"] > 0.5
    assert ("logps/initial" in record.metrics) == (config.get("loss") == "t-spin")
