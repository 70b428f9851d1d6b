"""How much memory is free for this process, and whether it ran out.

Light to import: torch is loaded only where a GPU is asked for.
"""

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
"""Where the kernel shows the control groups that limit a container, a service or a batch job."""

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
"""A group's limit, its use, and the entry of `memory.stat` with the cache of files, which gives way when it must."""


def free_memory(device: str) -> tuple[int, str]:
    """Bytes that are free for a process on `cpu` or `cuda`, and where. A control group's limit counts."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0], f"on {torch.cuda.get_device_name()}"
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    limited = min((_free_in(group, names) for group, names in _groups()), default=free)
    return (limited, "in this container") if limited < free else (free, "in memory")


def kills_by_kernel() -> int:
    """How many processes the kernel has killed for memory: of this process's control group, or else of the machine."""
    counts = [("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill")]
    entries = [(group / name, key) for group, _ in _groups() for name, key in counts]
    for path, key in [*entries, (Path("/proc/vmstat"), "oom_kill")]:
        if (count := _entry(path, key)) is not None:
            return count
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error class for a GPU, but only a message for a CPU."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups with a limit that this process is in, innermost first, and the names of their files."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (_GROUPS / "memory", _V1) if controllers else (_GROUPS, _V2)
        own = root / inside.lstrip("/")
        for group in [own, *own.parents]:
            if group.is_relative_to(root) and _limit(group, names) is not None:
                yield group, names


def _limit(group: Path, names: tuple[str, str, str]) -> int | None:
    """The limit of a group in bytes; None if it has none."""
    text = next(iter(_lines(group / names[0])), "max")
    return None if text == "max" or int(text) >= 2**60 else int(text)


def _free_in(group: Path, names: tuple[str, str, str]) -> int:
    """Bytes that a group's processes may still take."""
    used = int(next(iter(_lines(group / names[1])), "0"))
    return max(0, (_limit(group, names) or 0) - used + (_entry(group / "memory.stat", names[2]) or 0))


def _entry(path: Path, key: str) -> int | None:
    """The number after `key` in a file of the kernel; None if it is not there."""
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{key} ")), None)


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel; none if it cannot be read, as where there is no such file."""
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
