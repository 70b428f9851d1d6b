"""Free memory, the kernel's count of processes killed for memory, and errors that mean that memory ran out."""

import pytest
import torch

from spin_core.runtime.memory import free

GIB = 2**30


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A process in control group `/a/b`; returns a function that writes a kernel's file below the groups' folder."""
    monkeypatch.setattr(free, "_GROUPS", tmp_path)
    lines = free._lines
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    monkeypatch.setattr(free, "_lines", lambda path: lines(own if str(path) == "/proc/self/cgroup" else path))

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


def test_free_memory_is_less_than_there_is():
    amount, where = free.free_memory("cpu")
    assert 50 * 2**20 < amount < 2**50
    assert where in ("in memory", "in this container")


def test_the_tightest_group_around_a_process_limits_it_and_cached_files_are_free(kernel):
    kernel("a/b/memory.max", "max\n")
    kernel("a/memory.max", f"{GIB // 64}\n")
    kernel("a/memory.current", f"{GIB // 128}\n")
    kernel("a/memory.stat", f"anon 5\ninactive_file {GIB // 256}\n")
    assert free.free_memory("cpu") == (GIB // 128 + GIB // 256, "in this container")


def test_a_group_of_the_older_kind_limits_too(kernel, tmp_path):
    (tmp_path / "own").write_text("5:cpu:/a\n4:memory:/not/visible/here\n")
    kernel("memory/memory.limit_in_bytes", f"{GIB // 64}\n")
    kernel("memory/memory.usage_in_bytes", f"{GIB // 128}\n")
    assert free.free_memory("cpu") == (GIB // 128, "in this container")
    kernel("memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert free.free_memory("cpu")[1] == "in memory"


def test_kills_are_counted_in_the_limited_group_or_on_the_machine(kernel):
    assert free.kills_by_kernel() >= 0
    kernel("a/memory.max", f"{GIB}\n")
    kernel("a/memory.events", "low 0\noom 9\noom_kill 7\n")
    assert free.kills_by_kernel() == 7


def test_only_a_lack_of_memory_is_one():
    errors = [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    assert all(map(free.is_out_of_memory, errors))
    assert not free.is_out_of_memory(RuntimeError("shapes differ"))
