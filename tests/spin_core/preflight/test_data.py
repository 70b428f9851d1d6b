"""The padding of rows that `spin check` estimates."""

from spin_core.config.train import TrainConfig
from spin_core.preflight import data


def test_padding_is_what_rows_hold_beyond_their_sequences():
    config = TrainConfig(batch_size=4, micro_batch_tokens=10**6, loss="sft")
    assert data.padding([(5, 5)] * 10, config) == 1
    assert data.padding([(1, 1), (1, 2), (1, 3), (1, 8)], config) == 4 * 9 / (2 + 3 + 4 + 9)
    # Of a prompt's two responses, both rows are as long as the longer one.
    pairs = TrainConfig(batch_size=1, micro_batch_tokens=10**6)
    assert data.padding([(1, 1), (1, 9)], pairs) == 4 * 10 / (2 + 10 + 2 + 10)
    alike = TrainConfig(batch_size=64, micro_batch_tokens=100, loss="sft")
    assert 1 < data.padding([(1, n) for n in range(1, 200)], alike) < 1.2, "rows of like length lie together"
