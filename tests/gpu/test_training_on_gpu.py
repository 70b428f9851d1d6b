"""Training and scoring on a GPU, against the CPU's."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from spin_core.config.model import ModelConfig
from spin_core.config.train import SpeedConfig
from spin_core.errors import Stopped
from spin_core.models.vocabulary_loss import ItemLosses, fused_loss
from spin_core.store.training_log import read_rows
from spin_core.training.losses import LOG_2
from tests.support.helpers import character_tokenizer
from tests.support.lineages.small_jobs import CPU, random_train_job, run_job, start_job
from tests.support.processes.many_jobs import StopsAt

GPU = ModelConfig(device="cuda", dtype="float32")
BF16 = ModelConfig(device="cuda", dtype="bfloat16")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama, wide enough for every kernel."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), character_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def losses(job) -> list[float]:
    return [row["loss"] for row in read_rows(job.output / "metrics.jsonl")]


def test_float32_training_equals_the_cpus(tmp_path, model):
    there, here = (
        random_train_job(tmp_path / name, model, where, epochs=8) for name, where in (("gpu", GPU), ("cpu", CPU))
    )
    run_job(there), run_job(here)
    assert len(losses(here)) == 24
    assert losses(there) == pytest.approx(losses(here), abs=2e-4)
    assert losses(here)[-1] < LOG_2 - 0.02


@pytest.mark.parametrize(
    "speed",
    [
        {},
        {"attention": "sdpa"},
        {"packing": False},
        {"prefix_sharing": False},
        {"compile": True},
        {"compile": True, "attention": "sdpa"},
        {"response_logits": False},
        {"cached_scores": False},
        {"prefetch": False},
    ],
    ids=str,
)
def test_bfloat16_training_starts_at_log_2_and_learns_the_same_with_each_speed_setting(tmp_path, model, speed):
    on_cpu = random_train_job(tmp_path / "cpu", model, CPU, epochs=8)
    on_gpu = random_train_job(tmp_path / "gpu", model, BF16, epochs=8, speed=SpeedConfig(**speed))
    run_job(on_cpu), run_job(on_gpu)
    assert losses(on_gpu)[0] == pytest.approx(LOG_2, abs=2e-2)
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=3e-2)


def test_a_stopped_training_ends_like_an_uninterrupted_one(tmp_path, model):
    whole, parted = (random_train_job(tmp_path / name, model, BF16, epochs=8) for name in ("whole", "parted"))
    run_job(whole)
    with pytest.raises(Stopped):
        run_job(parted, StopsAt(9))
    run_job(parted)
    assert losses(parted) == pytest.approx(losses(whole), abs=2e-3)
    whole_weights, parted_weights = (load_file(job.weights / "model.safetensors") for job in (whole, parted))
    assert all(torch.allclose(whole_weights[name], parted_weights[name], atol=1e-2) for name in whole_weights)


def test_an_adapter_trains_too(tmp_path, model):
    job = random_train_job(tmp_path, model, BF16, epochs=8, lora={"rank": 4})
    run_job(job)
    assert losses(job)[0] == pytest.approx(LOG_2, abs=2e-2)
    assert losses(job)[-1] < losses(job)[0]


def test_one_rank_with_nccl_and_deepspeed_trains_as_one_device_does(tmp_path, model):
    pytest.importorskip("deepspeed")
    alone = random_train_job(tmp_path / "alone", model, BF16, epochs=8)
    run_job(alone)
    shared = random_train_job(tmp_path / "shared", model, BF16, epochs=8, speed=SpeedConfig(deepspeed="zero2"))
    process = start_job(shared, tmp_path / "log")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output + (tmp_path / "log" / "stderr.txt").read_text()[-3000:]
    assert losses(shared) == pytest.approx(losses(alone), abs=3e-3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap", [None, 10.0])
def test_the_fused_loss_equals_float64(dtype, compiled, cap):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(*shape, device="cuda", dtype=dtype) for shape in ((600, 64), (1000, 64)))
    target, slope = torch.randint(0, 1000, (600,), device="cuda"), torch.randn(600, device="cuda")
    hidden.requires_grad_()
    added = torch.ones(1000, 64, device="cuda")
    one_token = ItemLosses(torch.ones((1, 600), dtype=torch.int64).numpy(), lambda logps, b: logps[0] * slope[b])
    options = {"cap": cap, "compiled": compiled}
    loss, logps = fused_loss(hidden, weight, None, target, one_token, 1.3, 250 * 1000, added, **options)
    loss.backward()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight.T
    bent = logits if cap is None else cap * torch.tanh(logits / cap)
    want = F.log_softmax(bent / 1.3, -1).gather(1, target[:, None])[:, 0]
    (want * slope).sum().backward()
    near = 1e-4 if dtype == torch.float32 else 1e-2
    for result, exact in ((logps, want), (hidden.grad, exact_hidden.grad), (added - 1, exact_weight.grad)):
        assert (result.double() - exact).norm() / exact.norm() < near
