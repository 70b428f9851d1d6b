"""The versions that an environment has of what is asked for, and of all that this needs, as constraints for pip.

`make lock` writes by it what the image is built with. It runs in the environment that it tells of, and imports nothing
of ours, since vLLM's is one of them.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LEFT_OUT = {"spin-loop", "triton", "apache-tvm-ffi", "intel-openmp", "intel-cmplr-lib-ur"}
"""Ourselves, and what a build for a GPU asks for in another version than one for a CPU, or not at all."""


def pins(wanted: list[str]) -> list[str]:
    """A line for each package, without what marks its build."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(one) for one in wanted]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # the Makefile takes some away that vLLM asks for
            continue
        found[name] = Version(installed.version).public
        for extra in {"", *one.extras} - {extra for have, extra in seen if have == name}:
            seen.add((name, extra))
            needs = [Requirement(need) for need in installed.requires or ()]
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in LEFT_OUT]


if __name__ == "__main__":
    print("\n".join(pins(sys.argv[1:])))
