"""The device's measured speed."""

import torch

from spin_core.config.resolve import resolve
from spin_core.preflight.sizes import Shape, Texts
from spin_core.preflight.times import measure

SHAPE = Shape(
    parameters=1000, layers=2, hidden=8, intermediate=16, query_width=8, key_width=4, vocabulary=50, itemsize=4
)
TEXTS = Texts(prompts=100, held_out=10, prompt_tokens=20, response_tokens=30, longest_prompt=40, longest=80)


def test_measuring_a_device_takes_half_a_second_and_changes_nothing():
    threads = torch.get_num_threads()
    speed = measure.measure(SHAPE, resolve("demo"), TEXTS, torch.device("cpu"))
    assert speed.batch_flops > 1e6
    assert speed.row_flops > 1e5
    assert speed.bandwidth > 1e7
    assert 0 < speed.start < 0.01
    assert 0 < speed.attention < 0.01
    assert torch.get_num_threads() == threads
