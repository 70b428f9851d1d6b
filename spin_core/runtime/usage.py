"""What a phase used: memory, device, package versions."""

import platform
import resource
import sys
from importlib import metadata


def peak_memory_mb() -> float:
    """The most memory that this process has had: allocated on its GPU if it computes on one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_allocated()) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def environment() -> dict[str, str]:
    """What did the work: versions of the packages that this phase loaded, and its device."""
    packages = ("torch", "transformers", "datasets", "lm_eval", "numpy", "pyarrow", "vllm", "deepspeed")
    found = {name: installed_version(name) for name in packages if name in sys.modules}
    found["python"] = platform.python_version()
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    found["device"] = torch.cuda.get_device_name() if torch is not None and on_gpu else f"CPU {platform.machine()}"
    return found


def installed_version(name: str) -> str:
    """The version of a package that is loaded; its own word for it where it was installed under another name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules[name], "__version__", "unknown"))
