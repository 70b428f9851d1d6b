"""A wheel is all that `spin` needs: its commands, pages and `spin up` run from one, without a checkout.

The wheel is installed into a fresh environment, which sees the other packages of this one but not the checkout.
"""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import ROOT
from tests.support.servers.served import Up, free_port

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    bin: Path
    folder: Path
    """A folder to work in, which is no checkout."""

    @staticmethod
    def environment() -> dict[str, str]:
        """Variables without those that would lead to the checkout or to another server."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k != "PYTHONPATH"}
        return {**kept, "OMP_NUM_THREADS": "1"}

    def run(self, *command: str) -> str:
        """What a command of the environment prints."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def spin(self, *arguments: str) -> str:
        """What a command prints."""
        return self.run("spin", *arguments)


class InstalledUp(Up):
    """`spin up` of the installed wheel."""

    installed: Installed

    def command(self, *more: str) -> list[str]:
        options = ["--runs", str(self.runs), "--port", str(self.port)]
        return [str(self.installed.bin / "spin"), "up", *options, *more]

    @staticmethod
    def all_environment() -> dict[str, str]:
        return Installed.environment()


def build_wheel(folder: Path) -> Path:
    """The wheel, built in a copy of the source, since building writes into it."""
    source = folder / "source"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            copy = source / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The wheel in an environment of its own; tests work in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # Packages on this path are importable, while its own .pth files, which name the checkout, are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(build_wheel(folder))], check=True)
    work = folder / "work"
    work.mkdir()
    with contextlib.chdir(work):
        yield Installed(environment / "bin", work)


@pytest.fixture(scope="module")
def up(installed: Installed) -> Iterator[Up]:
    """A `spin up` of the wheel."""
    started = InstalledUp(installed.folder / "runs", free_port())
    started.installed = installed
    with started:
        yield started


@pytest.fixture(scope="module")
def lineage(installed: Installed, up: Up, player_in: Any) -> Path:
    """A small lineage, run by the installed command on the server that is up."""
    arguments = player_in(up.runs).arguments("tale", "--iterations", "1", "--set=controls={}")
    installed.spin(*arguments)
    return up.runs / "tale"


def test_nothing_is_imported_from_the_checkout(installed):
    code = (
        "import sys, flows.spin, infra.worker, tasks.train\n"
        f"print([m for m in sys.modules.values() if (getattr(m, '__file__', '') or '').startswith('{ROOT}/')\n"
        "        and 'site-packages' not in m.__file__])"
    )
    assert installed.run("python", "-c", code) == "[]\n"


def test_the_wheel_has_every_file_that_is_not_code_but_read_by_code(installed):
    (packages,) = installed.bin.parent.glob("lib/python*/site-packages")
    assert (packages / "flows" / "prefect.yaml").is_file()
    for pattern in ("spin_core/**/assets/*", "flows/**/templates/*", "infra/deepspeed/*.json", "infra/vllm/*.txt"):
        names = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        assert names
        assert names == {str(path.relative_to(packages)) for path in packages.glob(pattern)}


def test_the_version_and_the_recipes_are_shown(installed):
    assert installed.spin("--version").startswith("spin ")
    assert "zephyr-7b" in installed.spin("recipes")


def test_a_run_and_the_commands_that_read_it_work(installed, lineage):
    assert json.loads(installed.spin("leaderboard", "tale", "--json"))["rows"][1]["name"] == "θ_1"
    assert "θ_1" in installed.spin("show", "tale", "0")
    for command in ("show", "samples"):
        installed.spin(command, "tale", "--html", f"{command}.html")
        assert "<style>" in (installed.folder / f"{command}.html").read_text("utf-8")
    assert "tale" in installed.spin("verify", "tale")
    assert "θ_1 in merged" in installed.spin("export", "tale", "0", "--format", "merged", "-o", "merged")
    assert (lineage / "report.html").stat().st_size > 1000


@pytest.mark.usefixtures("lineage")
def test_a_deployment_of_spin_up_continues_the_lineage(up):
    run = up.finish(up.trigger("spin", {"lineage": "tale", "iterations": 1}))
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert up.tasks(run)["train t=0"] == "Reused"


@pytest.mark.usefixtures("lineage")
def test_the_pages_of_spin_up_have_their_templates(up):
    page = up.client.get(f"http://127.0.0.1:{up.port}/lineages/tale/", auth=up.auth)
    assert page.status_code == 200
    assert "θ_1" in page.text
    assert "<style>" in page.text


@pytest.mark.usefixtures("up")
def test_spin_down_ends_it(installed):
    assert "tale" in installed.spin("status")
    assert installed.spin("down") == "down\n"
