"""Findings about memory, disk and time."""

import pytest
import torch

from spin_core.config.resolve import resolve
from spin_core.preflight import fit, resources
from spin_core.preflight.findings import Inspection
from spin_core.preflight.sizes import Shape, Texts

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)
TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


def test_a_model_of_135m_parameters_is_ready_with_13_gb(monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda _device: (13 * 10**9, "in memory"))
    monkeypatch.setattr(fit, "free_memory", lambda _device: (13 * 10**9, "in memory"))
    smollm2 = Shape(
        parameters=134_515_008, layers=30, hidden=576, intermediate=1536, query_width=576, key_width=192,
        vocabulary=49_152, itemsize=2, heads=9,
    )  # fmt: skip
    texts = Texts(
        prompts=10_000, held_out=500, prompt_tokens=150, response_tokens=300, longest_prompt=512, longest=1024
    )

    def findings(*sets: str) -> list[tuple[str, str]]:
        config, inspection = resolve("smollm2-135m", sets=["generate.engine=transformers", *sets]), Inspection()
        resources.inspect_memory(inspection, fit.fit_run(config, smollm2, texts, "cpu"), smollm2, texts)
        return [(finding.level, finding.text) for finding in inspection.findings]

    (training, generation) = findings()
    assert training[0] == generation[0] == "ok"
    assert training[1].startswith("training with 4,096 tokens in a pass takes about")
    assert generation[1].startswith("generation with 128 answers at a time takes about")
    assert findings("train.micro_batch_tokens=16384")[0][0] == "wrong", "a user's number is left as it is"


@pytest.mark.parametrize(
    ("sets", "fix"),
    [
        ((), "zero2-offload"),
        (("train.speed.deepspeed=zero2-offload",), None),
        (("train.speed.ranks=2", "train.speed.deepspeed=zero3"), "zero3-offload"),
        (("train.speed.ranks=2", "train.speed.deepspeed=zero3-offload"), None),
    ],
)
def test_offloading_is_suggested_where_it_would_help(monkeypatch, sets, fix):
    from spin_core.runtime import devices

    monkeypatch.setattr(devices, "device_of", lambda _model: torch.device("cuda"))
    monkeypatch.setattr(resources, "free_memory", lambda device: (10**10 if device == "cuda" else 10**12, "there"))
    shape = Shape(**{**vars(SHAPE), "itemsize": 2, "parameters": 10**10, "layers": 40})
    inspection = Inspection()
    config = resolve("demo", sets=["generate.engine=vllm", "train.speed.cached_scores=false", *sets])
    resources.inspect_memory(inspection, config, shape, TEXTS)
    text = inspection.findings[0].text
    assert [name for name in ("zero2-offload", "zero3-offload") if f"train.speed.deepspeed to {name}" in text] == (
        [fix] if fix else []
    )
    assert "set train.speed.cached_scores or " in text
    host = inspection.findings[1].text
    # Its masters and states in float32 are copied for a checkpoint.
    assert host.startswith("training takes about ")
    assert "of this machine's own memory (a checkpoint 120 GB" in host
    assert ("offloaded" in host) == (not fix)
