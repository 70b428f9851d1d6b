import itertools
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spin_core.data import demo
from spin_core.errors import DataError
from spin_core.evaluation.exact import distances, exact_distances

NAMES = ("total_variation", "invalid_mass", "forward_kl")


def test_distances_by_hand():
    measures = distances(np.array([0.5, 0.5]), np.log([0.5, 0.25]))
    assert measures["invalid_mass"] == pytest.approx(0.25)
    assert measures["total_variation"] == pytest.approx(0.25)
    assert measures["forward_kl"] == pytest.approx(0.5 * math.log(2))


def test_a_player_equal_to_the_data_has_distance_0():
    p = np.array([0.3, 0.25, 0.45])
    assert list(distances(p, np.log(p)).values()) == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_player_that_is_never_right_has_the_largest_distance():
    measures = distances(np.array([1.0]), np.array([-2000.0]))
    assert measures == {"total_variation": 1.0, "invalid_mass": 1.0, "forward_kl": 2000.0}


def test_total_variation_is_the_largest_difference_over_all_events():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5))[:4]
    whole = [*zip(p, q, strict=True), (0.0, 1 - q.sum())]
    events = itertools.chain.from_iterable(itertools.combinations(whole, size) for size in range(6))
    largest = max(abs(sum(a for a, _ in event) - sum(b for _, b in event)) for event in events)
    assert distances(p, np.log(q))["total_variation"] == pytest.approx(largest)


def player(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(demo.build_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def brute_force(model, prompt_ids, response_ids, temperature):
    """log q(response | prompt), a token at a time."""
    total = 0.0
    with torch.inference_mode():
        for place, token in enumerate(response_ids):
            logits = model(torch.tensor([[*prompt_ids, *response_ids[:place]]])).logits[0, -1].double()
            total += torch.log_softmax(logits / temperature, -1)[token].item()
    return total


def spelled(tokenizer, texts):
    return [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_right_response_is_scored_as_by_brute_force(temperature):
    model, tokenizer = player(), demo.build_tokenizer()
    prompts = ["347=", "201=", "999=", "250="]
    prompt_ids = spelled(tokenizer, prompts)
    # Several temperatures from one pass give what each gives alone.
    _, measures = exact_distances(
        model, tokenizer, demo.support, prompts, prompt_ids,
        end_id=tokenizer.eos_token_id, temperatures=(0.3, temperature), micro_batch_tokens=40,
    )  # fmt: skip
    for i, prompt in enumerate(prompts):
        right = demo.support(prompt)
        log_q = [
            brute_force(model, prompt_ids[i], [*tokenizer(text)["input_ids"], tokenizer.eos_token_id], temperature)
            for text in right
        ]
        want = distances(np.array(list(right.values())), np.array(log_q))
        assert {name: measures[name][i] for name in NAMES} == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_the_distance_to_the_players_own_distribution_is_0():
    # A model whose answers do not depend on the prompt: the support is every text of one digit, or none.
    model, tokenizer = player(), demo.build_tokenizer()
    eos = tokenizer.eos_token_id
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[:, 0] = 1
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -1000
        model.lm_head.weight[eos, 0] = 0
    (measures,) = exact_distances(
        model, tokenizer, lambda _prompt: {"": 1.0}, ["347="], spelled(tokenizer, ["347="]),
        end_id=eos, temperatures=(1.0,), micro_batch_tokens=100,
    )  # fmt: skip
    assert {name: measures[name][0] for name in NAMES} == dict.fromkeys(NAMES, 0.0)


def test_a_prompt_that_the_source_does_not_have_is_rejected():
    tokenizer = demo.build_tokenizer()
    with pytest.raises(DataError, match="not a prompt of the demo"):
        exact_distances(
            player(), tokenizer, demo.support, ["12="], spelled(tokenizer, ["12="]),
            end_id=2, temperatures=(1.0,), micro_batch_tokens=100,
        )  # fmt: skip
