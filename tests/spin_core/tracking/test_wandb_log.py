"""The file that W&B writes without a server."""

from spin_core.tracking.wandb_log import read_records


def test_a_file_that_a_kill_cut_short_is_read_up_to_its_last_whole_record():
    def chunk(kind: int, data: bytes) -> bytes:
        return bytes(4) + len(data).to_bytes(2, "little") + bytes([kind]) + data

    head, filling = bytes(7), 2**15 - 7 - 7 - 5
    content = (
        head + chunk(1, b"a" * filling) + bytes(5) + chunk(2, b"b") + chunk(3, b"c") + chunk(4, b"d") + chunk(1, b"e")
    )
    assert list(read_records(content)) == [b"a" * filling, b"bcd", b"e"]
    assert list(read_records(content[:-1])) == [b"a" * filling, b"bcd"]
    assert list(read_records(b"")) == []
