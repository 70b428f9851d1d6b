"""Print the installed versions of packages and of all their dependencies, as constraints for pip.

`make lock` uses it to pin the packages of the image. It runs in the environment that it describes, which may be vLLM's,
so it imports nothing of this project.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXCLUDED = {"spin-loop", "triton", "apache-tvm-ffi", "intel-openmp", "intel-cmplr-lib-ur"}
"""This package, and packages whose versions differ between builds for GPUs and for CPUs."""


def pins(wanted: list[str]) -> list[str]:
    """Return one line per package, without the local part of its version, which names a build."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(text) for text in wanted]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # the Makefile removes some that vLLM requires
            continue
        versions[name] = Version(installed.version).public
        for extra in {"", *requirement.extras} - {extra for have, extra in seen if have == name}:
            seen.add((name, extra))
            needs = [Requirement(need) for need in installed.requires or ()]
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in EXCLUDED]


if __name__ == "__main__":
    print("\n".join(pins(sys.argv[1:])))
