"""The version that records and `spin --version` name: the package's, with its commit where that is known."""

import importlib.metadata
import json
import subprocess

import pytest

from spin_core.runtime import version

PLAIN = importlib.metadata.version("spin-loop")


def git(folder, *arguments) -> str:
    settings = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one commit."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    return tmp_path


@pytest.fixture
def noted(monkeypatch):
    """Sets what pip has noted about the installation."""

    class Installed:
        text: str | None = None
        version = PLAIN

        def read_text(self, name):
            assert name == "direct_url.json"
            return self.text

    installed = Installed()
    monkeypatch.setattr(version.metadata, "distribution", lambda _: installed)
    return installed


def test_the_version_of_a_checkout_has_its_commit(checkout, monkeypatch):
    monkeypatch.setattr(version, "_HOME", checkout)
    assert version.spin_version() == f"{PLAIN} ({git(checkout, 'rev-parse', '--short=12', 'HEAD')})"


def test_an_environment_inside_another_checkout_does_not_name_that_ones_commit(checkout, monkeypatch, noted):
    packages = checkout / ".venv" / "site-packages"
    packages.mkdir(parents=True)
    monkeypatch.setattr(version, "_HOME", packages)
    assert version.spin_version() == PLAIN
    noted.text = json.dumps({"url": "file:///spin.whl", "archive_info": {}})
    assert version.spin_version() == PLAIN
    noted.text = json.dumps({"url": "https://example.org/spin", "vcs_info": {"commit_id": "0123456789abcdef"}})
    assert version.spin_version() == f"{PLAIN} (0123456789ab)"


@pytest.mark.usefixtures("noted")
def test_without_git_the_version_has_no_commit(checkout, monkeypatch):
    monkeypatch.setattr(version, "_HOME", checkout)
    monkeypatch.setenv("PATH", "")
    assert version.spin_version() == PLAIN
