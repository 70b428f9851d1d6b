"""The first step of an iteration: its loss is log 2, and its gradient can be written down."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spin_core.data.sequences import read_token_ids
from spin_core.data.tokenizer import load_tokenizer
from spin_core.models.loading import load_model
from tests.support.helpers import data_folder
from tests.support.lineages.small_jobs import (
    CPU,
    batch_metrics,
    random_pairs,
    run_job,
    score_job,
    stepper_of,
    train_job,
    version_of,
    write_pairs,
)


def stories(count: int) -> list[str]:
    path = data_folder("tinystories")
    file = next(file for file in sorted(path.iterdir()) if "val" in file.name)
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"][:180] for line, _ in zip(lines, range(count), strict=False)]


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_the_first_loss_on_a_real_model_and_real_text_is_log_2(tmp_path: Path, beta: float):
    """Real responses are the stories' own ends, generated ones the ends of other stories."""
    folder = data_folder("models", "babyllama-105")
    tokenizer = load_tokenizer(folder, CPU)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in stories(16)]
    ends = [story[60:] for story in ids]
    pairs = write_pairs(tmp_path / "pairs", [story[:60] for story in ids], ends, ends[1:] + ends[:1])
    start = version_of(folder)
    scores = run_job(score_job(tmp_path / "scores", start, pairs, micro_batch_tokens=1024))
    record = run_job(train_job(tmp_path, start, pairs, scores, batch_size=16, beta=beta))
    assert record.first_loss == pytest.approx(math.log(2), abs=1e-5 * max(1, beta / 0.1))


def test_the_gradient_of_the_output_layer_by_hand(tmp_path: Path, tiny_model: Path):
    """dL/dW = -(beta / B) sum over pairs of sigmoid(-margin) * (real - generated), where each side is the sum over its
    response tokens of (onehot(token) - softmax(W h)) h'. Here the player is its opponent, so every sigmoid is 1/2."""
    start, pairs, beta = version_of(tiny_model), random_pairs(tmp_path / "pairs", rows=5), 0.7
    scores = run_job(score_job(tmp_path / "scores", start, pairs))
    job = train_job(tmp_path, start, pairs, scores, beta=beta)
    stepper = stepper_of(job)
    measured = batch_metrics(job, stepper, np.arange(5))
    model = load_model(tiny_model, CPU)

    want = torch.zeros_like(model.lm_head.weight)
    columns = read_token_ids(pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    with torch.no_grad():
        for prompt, *sides in zip(*columns, strict=True):
            for sign, response in zip((1, -1), sides, strict=True):
                ids = torch.from_numpy(np.concatenate([prompt, response])).long()
                hidden = model.model(input_ids=ids[None]).last_hidden_state[0]
                for at in range(len(prompt), len(ids)):
                    pull = -torch.softmax(model.lm_head.weight @ hidden[at - 1], dim=0)
                    pull[ids[at]] += 1
                    want -= sign * beta / 5 * 0.5 * torch.outer(pull, hidden[at - 1])
    assert measured["loss"] == pytest.approx(math.log(2), abs=1e-6)
    torch.testing.assert_close(stepper.network.model.lm_head.weight.grad, want, rtol=1e-4, atol=1e-6)
