"""Scores that were made with other settings than the present ones: set aside, kept, and restored.

The settings of `evaluate` may change at any time, because no version depends on them. A new suite is then scored for
all versions. A suite whose settings changed is scored again for all versions, since scores can be compared only if they
were made with the same settings. Earlier scores are kept:

    eval/<suite>/                        as the lineage's settings are now
    eval/.earlier/<suite>-<identity>/    as they were
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_core.errors import StaleArtifact
from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts, identity
from spin_core.store.jobs import Job
from spin_core.store.records import EvalReport

EARLIER = ".earlier"
"""Next to a version's suites: the folder of reports that were made with other settings."""

_MODEL = "player"
"""The field of a job with the scored model. A report on another model is an error, not a changed setting."""

_SETTINGS = ("config", "judge", "generate", "seed")
"""Parts of a suite's identity that a user chooses."""

_SHARED_SETTINGS = ("config", "judge")
"""Those of them that must be the same for all models whose scores are compared."""


def prepare_folder(job: Job) -> str:
    """Make sure that the output folder of a suite's job is free, or holds a report made with the same settings.

    A report made with other settings is set aside, and restored when those settings return.

    Returns:
        A message for the user; empty if nothing changed.
    """
    changed = changed_settings(job)
    if changed:
        _set_aside(job.output)
    kept = _kept_at(job.output, identity.identity_of(job))
    restored = kept.exists() and not job.output.exists()
    if restored:
        kept.replace(job.output)
    if not changed:
        return ""
    how = "restored as it was scored before" if restored else "scored again"
    return f"{_title(job.output)} is {how}: {changed}; the earlier report is kept in {job.output.parent / EARLIER}"


def check(jobs: Iterable[Job], lineage: str) -> None:
    """Raise `StaleArtifact` if the output folder of a job holds a report that was made with other settings."""
    for job in jobs:
        if changed := changed_settings(job):
            raise StaleArtifact(
                f"{_title(job.output)} of {lineage} was scored with other settings ({changed}): leave that setting as "
                f"it is, or give it to spin run or spin next {lineage}, which score all versions again"
            )


def changed_settings(job: Job) -> str:
    """How a job's settings differ from those of the report in its folder: `config.limit = 5, not 9`.

    Empty if they do not, or if the folder has a report on another model.
    """
    manifest = artifacts.read_manifest(job.output)
    want = identity.identity_of(job)
    changed = identity.differences(manifest["identity"], want) if manifest else []
    if not changed or any(name == _MODEL for name, _, _ in changed):
        return ""
    # A new report on the opponent, which is part of the identity too, is a consequence and not the cause.
    name, was, now = min(changed, key=lambda item: item[0].split(".")[0] not in _SETTINGS)
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} = {identity.shorten(was)}, not {identity.shorten(now)}{more}"


def set_aside_incomparable(lineage: Lineage, of_base: Sequence[EvalReport]) -> None:
    """Set aside scores of controls that were made with other settings than the reports on θ_0, `of_base`."""
    want = {report.suite: _shared_settings(report.path) for report in of_base}
    for manifest in sorted((lineage.root / "controls").glob(f"*/eval/[!.]*/{identity.MANIFEST}")):
        folder = manifest.parent
        if folder.name in want and _shared_settings(folder) != want[folder.name]:
            _set_aside(folder)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that a published report was made with."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published"
    return {name: manifest["identity"][name] for name in _SETTINGS if name in manifest["identity"]}


def _set_aside(folder: Path) -> None:
    """Move a published report to where no leaderboard reads it."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published"
    kept = _kept_at(folder, manifest["identity"])
    kept.parent.mkdir(exist_ok=True)
    if kept.exists():
        shutil.rmtree(kept)  # the same report
    folder.replace(kept)


def _kept_at(output: Path, report_identity: Any) -> Path:
    """The folder in which a report of that identity is kept."""
    return output.parent / EARLIER / f"{output.name}-{identity.digest_of(report_identity)[:16]}"


def _shared_settings(folder: Path) -> dict[str, Any]:
    """Those of them that must be the same for all models of a leaderboard."""
    return {name: value for name, value in settings_of(folder).items() if name in _SHARED_SETTINGS}


def _title(output: Path) -> str:
    """`iter_01 · self-play`: the iteration or control, and the suite."""
    return f"{output.parent.parent.name} · {output.name}"
