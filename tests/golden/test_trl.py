"""Loss and gradient compared with TRL's own DPO trainer: with opponent for reference, logistic SPIN is sigmoid DPO."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from spin_core.data.tokenizer import load_tokenizer
from spin_core.models.loading import load_model
from tests.support.helpers import save_tiny_model
from tests.support.lineages.small_jobs import (
    CPU,
    batch_metrics,
    run_job,
    score_job,
    stepper_of,
    train_job,
    version_of,
    write_pairs,
)

ROWS = [
    ("What is two and two? ", "Four.", "It is five, I believe."),
    ("Name a colour. ", "Blue is one of them.", "Dog"),
    ("Say hello. ", "Hello!", "Hello hello hello hello"),
]


def test_loss_gradient_and_metrics_equal_trls(tmp_path: Path, tiny_model: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl")
        from datasets import Dataset
    beta = 0.3
    tokenizer = load_tokenizer(tiny_model, CPU)
    player = save_tiny_model(tmp_path / "player", tokenizer, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.DPOTrainer(
            model=load_model(player, CPU),
            ref_model=load_model(tiny_model, CPU),
            args=trl.DPOConfig(
                output_dir=str(tmp_path / "trl"),
                beta=beta,
                loss_type=["sigmoid"],
                use_cpu=True,
                bf16=False,
                report_to="none",
                per_device_train_batch_size=len(ROWS),
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": prompt, "chosen": real, "rejected": generated} for prompt, real, generated in ROWS]
            ),
            processing_class=tokenizer,
        )
        rows = list(trainer.train_dataset)
        expected_loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        expected_loss.backward()
    their_gradients = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    # Its model is in evaluation mode, as Spin's is.
    their_metrics = {name: values[0] for name, values in trainer._metrics["eval"].items()}

    columns = ([list(row[name]) for row in rows] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    pairs = write_pairs(tmp_path / "pairs", *columns)
    scores = run_job(score_job(tmp_path / "scores", version_of(tiny_model), pairs))
    job = train_job(tmp_path, version_of(tiny_model), pairs, scores, beta=beta)
    stepper = stepper_of(job)
    stepper.network.model.load_state_dict(load_model(player, CPU).state_dict())
    metrics = batch_metrics(job, stepper, np.arange(len(rows)))

    assert metrics["loss"] == pytest.approx(expected_loss.item(), rel=1e-5)
    assert abs(expected_loss.item() - np.log(2)) > 0.01
    for name, weight in stepper.network.model.named_parameters():
        torch.testing.assert_close(weight.grad, their_gradients[name], rtol=1e-3, atol=1e-6)
    same = {
        "rewards/real": "rewards/chosen", "rewards/generated": "rewards/rejected", "logps/real": "logps/chosen",
        "logps/generated": "logps/rejected", "rewards/margins": "rewards/margins",
        "rewards/accuracies": "rewards/accuracies",
    }  # fmt: skip
    for name, theirs_name in same.items():
        assert metrics[name] == pytest.approx(their_metrics[theirs_name], rel=1e-4, abs=1e-5)
