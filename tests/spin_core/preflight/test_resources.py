"""Findings about memory, disk and time."""

import pytest
import torch

from spin_core.config.resolve import resolve
from spin_core.preflight import resources
from spin_core.preflight.findings import Inspection
from spin_core.preflight.sizes import Shape, Texts

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)
TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


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
    assert len(inspection.findings) == (1 if fix else 2)
    if not fix:
        assert inspection.findings[1].text.startswith("training offloads about ")


def test_free_memory_is_less_than_there_is():
    free, where = resources.free_memory("cpu")
    assert 50 * 2**20 < free < 2**50
    assert where in ("in memory", "in this container")
