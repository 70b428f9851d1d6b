"""The packages of `spin_core` have levels, and the imports respect them.

A package imports only from packages of lower levels. Imports inside functions count too, since a circle of lazy imports
is still a circle. docs/architecture.md explains what each package is for.
"""

import ast
import os
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.helpers import ROOT

LEVELS = (
    ("errors",),
    ("config",),
    ("store",),
    ("runtime",),
    ("data",),
    ("models",),
    ("inference", "training"),
    ("evaluation",),
    ("lineage",),
    ("leaderboard", "tracking", "remote"),
    ("preflight", "reports"),
    ("comparison",),
    ("phases",),
)
"""Packages of `spin_core`, lowest level first. Packages of one level do not import each other."""

MOST_MODULES = 15
"""A folder with more modules no longer shows a newcomer where to look."""

IN_VLLM = (
    "spin_core.phases.generate",
    "spin_core.phases.join",
    "spin_core.phases.benchmark",
    "spin_core.phases.mt_bench",
)
"""Phases that may run in vLLM's environment, which has none of ABSENT_THERE."""
ELSEWHERE = ("vllm", "pydantic_core", "typing_extensions")
"""Imports that need no line in pyproject.toml: vLLM has its own environment, and pydantic brings the others."""
ABSENT_THERE = ("lm_eval", "peft", "datasets", "prefect", "sklearn", "matplotlib")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    folders = ("spin_core", "tasks", "flows", "infra")
    return {module_name(path): path for folder in folders for path in (ROOT / folder).rglob("*.py")}


def imports() -> dict[str, set[str]]:
    """The modules of the project that each module imports, anywhere in its text."""
    paths = modules()
    imports: dict[str, set[str]] = {}
    for name, path in paths.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {target if target in paths else node.module for target in inner}
        imports[name] = (targets & paths.keys()) - {name}
    return imports


def outside_packages() -> dict[str, str]:
    """The packages of others that the project imports, each with a module that does."""
    outside = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = [node.module]
            else:
                continue
            outside |= {target.split(".")[0]: name for target in targets}
    own = {"spin_core", "tasks", "flows", "infra", *sys.stdlib_module_names}
    return {package: module for package, module in outside.items() if package not in own}


def level_of(package: str) -> int:
    return next(number for number, packages in enumerate(LEVELS) if package in packages)


def test_every_package_has_a_level():
    packages = {name.split(".")[1] for name in modules() if name.startswith("spin_core.")}
    assert packages == {package for level in LEVELS for package in level}


def test_a_package_imports_only_from_lower_levels():
    wrong = []
    for name, targets in imports().items():
        if not name.startswith("spin_core."):
            continue
        for target in targets:
            own, other = name.split(".")[1], target.split(".")[1] if "." in target else ""
            if not target.startswith("spin_core.") or (own != other and level_of(own) <= level_of(other)):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_nobody_imports_a_phase():
    importers = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if target.startswith("spin_core.phases.")
    ]
    assert not importers


def test_the_local_server_imports_no_flow():
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        if name.startswith("flows.server")
        for target in targets
        if target.startswith("flows.") and not target.startswith("flows.server")
    ]
    assert not wrong


def test_no_module_imports_itself_through_others():
    graph, circles = imports(), []
    for start in graph:
        reached, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += graph[name]
        if start in reached:
            circles.append(start)
    assert not circles


def test_no_folder_has_too_many_modules():
    count: dict[str, int] = defaultdict(int)
    for path in modules().values():
        if path.name != "__init__.py":
            count[str(path.parent.relative_to(ROOT))] += 1
    assert {folder: n for folder, n in count.items() if n > MOST_MODULES} == {}


def test_init_files_are_empty():
    full = [
        name
        for name, path in modules().items()
        if path.name == "__init__.py" and path.read_text("utf-8").count("\n") > 1
    ]
    assert not full


def test_every_package_that_is_imported_is_declared():
    """Whatever an import needs is installed because pyproject.toml says so, and not by chance by another package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = packages_distributions()
    undeclared = [
        f"{module} imports {package}"
        for package, module in outside_packages().items()
        if package not in ELSEWHERE
        and declared.isdisjoint(canonicalize_name(name) for name in distributions.get(package, [package]))
    ]
    assert not undeclared


@pytest.mark.slow
@pytest.mark.parametrize("phase", IN_VLLM)
def test_phases_of_vllms_environment_import_nothing_that_is_absent_there(phase):
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in ABSENT_THERE)
    code = f"import sys\n{block}import {phase}"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
