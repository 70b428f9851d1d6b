import math

import numpy as np
import pytest
import torch

from spin_core.config.generate import GenerateConfig
from spin_core.inference.sampling import Sampling, draw, penalised, probabilities, uniforms

LOGITS = torch.tensor([[0.0, math.log(2), math.log(4), math.log(1)]])  # 1/8 2/8 4/8 1/8


def test_probabilities_are_a_softmax_at_the_temperature():
    torch.testing.assert_close(probabilities(LOGITS, 1.0), torch.tensor([[1, 2, 4, 1]]) / 8)
    squares = torch.tensor([[1.0, 4, 16, 1]])
    torch.testing.assert_close(probabilities(LOGITS, 0.5), squares / squares.sum())


def test_the_smallest_temperature_is_the_greedy_choice_and_not_nan():
    assert probabilities(LOGITS, 1e-300).tolist() == [[0, 0, 1, 0]]


def test_top_k_keeps_the_likeliest_and_ties_with_the_last_of_them():
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_k=2), torch.tensor([[0, 1, 2, 0]]) / 3)
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_k=3), torch.tensor([[1, 2, 4, 1]]) / 8)
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_k=9), torch.tensor([[1, 2, 4, 1]]) / 8)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [0, 0, 4, 0]), (0.5, [0, 0, 4, 0]), (0.51, [0, 2, 4, 0]), (0.8, [1, 2, 4, 0]), (0.9, [1, 2, 4, 1])],
)
def test_top_p_keeps_the_smallest_set_with_that_probability(top_p, kept):
    want = torch.tensor([kept], dtype=torch.float32)
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_p=top_p), want / want.sum())


def test_top_k_cuts_before_top_p():
    # Of the two likeliest, 4/6 and 2/6, the first alone holds 0.6; of all four it would not.
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_p=0.6, top_k=2), torch.tensor([[0.0, 0, 1, 0]]))


@pytest.mark.parametrize(
    ("min_p", "kept"), [(0.2, [1, 2, 4, 1]), (0.3, [0, 2, 4, 0]), (0.49, [0, 2, 4, 0]), (0.6, [0, 0, 4, 0])]
)
def test_min_p_drops_tokens_that_are_unlikely_next_to_the_likeliest(min_p, kept):
    want = torch.tensor([kept], dtype=torch.float32)
    torch.testing.assert_close(probabilities(LOGITS, 1.0, min_p=min_p), want / want.sum())
    # It looks at what the temperature has made of the probabilities: 1 4 16 1.
    cold = torch.tensor([[0, 4, 16, 0] if min_p < 0.25 else [0, 0, 16, 0]], dtype=torch.float32)
    torch.testing.assert_close(probabilities(LOGITS, 0.5, min_p=min_p), cold / cold.sum())


def test_min_p_cuts_before_top_p():
    # Without the two unlikely tokens the likeliest holds 4/6 of the rest; of all four it would hold 1/2.
    torch.testing.assert_close(probabilities(LOGITS, 1.0, top_p=0.6, min_p=0.3), torch.tensor([[0.0, 0, 1, 0]]))


def test_the_penalty_makes_seen_tokens_less_likely_for_both_signs_of_logits():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalised(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_the_token_whose_cumulative_probability_exceeds_the_number_is_drawn():
    probs = torch.tensor([[0.25, 0.5, 0.0, 0.25]]).expand(7, 4)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.999, 1 - 2**-53], dtype=torch.float64)
    assert draw(probs, numbers).tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_a_token_of_probability_0_is_never_drawn():
    probs = torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3)
    assert draw(probs, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 1]


def test_a_seed_gives_the_same_numbers_next_to_any_others():
    alone, among = uniforms([7], 5), uniforms([3, 7, 2**64 - 1], 9)
    assert torch.equal(alone[0], among[1, :5])
    assert not torch.equal(among[0], among[2])
    assert among.min() >= 0
    assert among.max() < 1


def test_uniforms_are_uniform():
    numbers = uniforms(range(400), 50).numpy().ravel()
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom: p < .001 beyond 43.8


def test_settings_are_those_of_the_iteration():
    config = GenerateConfig(temperature=(1.0, 0.5), top_k=3, max_new_tokens=8)
    assert Sampling.of(config, 4) == Sampling(0.5, 1.0, 3, 8)
    config = GenerateConfig(min_p=0.1, repetition_penalty=1.2, stop_strings=("a",), stop_ids=(7,), max_new_tokens=8)
    assert Sampling.of(config, 0, ["b"]).stop_strings == ("a", "b")
    assert Sampling.of(config, 0) == Sampling(1.0, 1.0, 0, 8, 0.1, 1.2, ("a",), (7,))
