"""Answers of a GPU, against transformers' own and the CPU's."""

import pytest
import torch

from spin_core.inference.transformers_engine import TransformersEngine
from tests.support.models.engines import AS_IS, GREEDY, answers, gpt2, llama, mistral, requests


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_greedy_answers_are_those_of_the_cpu(make):
    to_answer = requests(12)
    on_cpu, on_gpu = (
        answers(TransformersEngine(make().to(device), [3, 4], GREEDY, 5), to_answer) for device in ("cpu", "cuda")
    )
    assert on_cpu == on_gpu


@pytest.mark.parametrize("make", [llama, mistral])
def test_the_same_requests_give_the_same_answers_in_any_batch(make):
    model, to_answer = make().cuda(), requests(24)
    together, again, few = (answers(TransformersEngine(model, [3], AS_IS, size), to_answer) for size in (16, 16, 3))
    assert together == again
    same = sum(answer == expected for answer, expected in zip(together, few, strict=True))
    assert same >= len(to_answer) - 1, "rounding alone may change an answer"


def test_bfloat16_answers_stop_and_have_no_token_beyond_the_vocabulary():
    model = llama().to("cuda", torch.bfloat16)
    answered = answers(TransformersEngine(model, [3], AS_IS, 8), requests(24))
    assert {answer.finish_reason for answer in answered} == {"stop", "length"}
    assert all(0 <= token < model.config.vocab_size for answer in answered for token in answer.response_ids)
