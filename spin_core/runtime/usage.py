"""What a phase used: memory, device and package versions. Its manifest keeps this."""

import platform
import resource
import sys
from importlib import metadata


def peak_memory_mb() -> float:
    """The peak memory of this process in MiB: allocated on its GPU if it uses one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_allocated()) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def environment() -> dict[str, str]:
    """The versions of the packages that this process has loaded, and its device."""
    packages = ("torch", "transformers", "datasets", "lm_eval", "numpy", "pyarrow", "vllm", "deepspeed")
    versions = {name: _version(name) for name in packages if name in sys.modules}
    versions["python"] = platform.python_version()
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    versions["device"] = torch.cuda.get_device_name() if torch is not None and on_gpu else f"CPU {platform.machine()}"
    return versions


def _version(name: str) -> str:
    """The version of a loaded package; the one that it states itself if it was installed under another name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules[name], "__version__", "unknown"))
