"""Which spin-loop runs: the package's version and its commit."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGE = "spin-loop"

_HOME = Path(__file__).resolve().parents[2]


def spin_version() -> str:
    """The package's version, with the commit that it was installed from where that is known: `0.2.0 (1f1c5e8a2b3d)`."""
    installed = metadata.distribution(_PACKAGE)
    commit = _commit_of_checkout() or _commit_of_installation(installed)
    return installed.version + (f" ({commit})" if commit else "")


def _commit_of_checkout() -> str:
    """The commit of the checkout that this file is in, `-dirty` if files have changed; empty if there is none."""
    # An installed package may be in an environment inside another project's checkout, whose commit means nothing here.
    if not (_HOME / ".git").exists():
        return ""
    try:
        git = subprocess.run(
            ["git", "-C", str(_HOME), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return git.stdout.strip() if git.returncode == 0 else ""


def _commit_of_installation(installed: metadata.Distribution) -> str:
    """The commit that pip has noted for `pip install git+https://…`; empty if it has none."""
    noted = json.loads(installed.read_text("direct_url.json") or "{}")
    commit: str = noted.get("vcs_info", {}).get("commit_id", "")
    return commit[:12]
