"""Scores that were made under other settings than those asked for now: set aside, kept, and taken back.

The settings of `evaluate` may change at any time. A version, and whatever was made to train it, hangs on none of them,
so nothing is played again: a suite that is new is scored for all versions, and one whose settings changed is scored
anew for all, since scores compare only where they were made alike. What was scored before is kept:

    eval/<suite>/                        as the lineage's settings are now
    eval/.earlier/<suite>-<identity>/    as they were
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_core.errors import StaleArtifact
from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts
from spin_core.store import identity as store_identity
from spin_core.store.jobs import Job
from spin_core.store.records import EvalReport

EARLIER = ".earlier"

MODEL = "player"
"""What a report is about. Settings come and go; a report on another model in this one's place is no one's wish."""

SETTINGS = ("config", "judge", "generate", "seed")
"""Parts of a suite's identity that a user chooses."""

ALIKE = ("config", "judge")
"""Those that are the same for all models whose scores are to be compared."""


def make_way(job: Job) -> str:
    """See that a suite's place is free, or holds what is asked for. Returns what a person should know, if anything.

    What was scored under other settings is set aside. It comes back once it is asked for again.
    """
    changed = unlike(job)
    if changed:
        set_aside(job.output)
    kept = earlier(job.output, store_identity.identity_of(job))
    back = kept.exists() and not job.output.exists()
    if back:
        kept.replace(job.output)
    if not changed:
        return ""
    how = "taken back as it was scored before" if back else "scored anew"
    return f"{place(job.output)} is {how}: {changed}; what stood there is kept in {job.output.parent / EARLIER}"


def check(jobs: Iterable[Job], lineage: str) -> None:
    """Raise `StaleArtifact` if a job's place holds what was scored under other settings."""
    for job in jobs:
        if changed := unlike(job):
            raise StaleArtifact(
                f"{place(job.output)} of {lineage} was scored otherwise ({changed}): leave that setting as it is, or "
                f"give it to spin run or spin next {lineage}, which score all versions anew"
            )


def unlike(job: Job) -> str:
    """In what a job differs from what made the report in its place: `config.limit = 5, not 9`; empty if in nothing."""
    manifest = artifacts.read_manifest(job.output)
    want = store_identity.identity_of(job)
    changed = store_identity.differences(manifest["identity"], want) if manifest else []
    if not changed or any(name == MODEL for name, _, _ in changed):
        return ""
    # An opponent's report that was made anew is the consequence, not the cause.
    name, was, now = min(changed, key=lambda item: item[0].split(".")[0] not in SETTINGS)
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} = {store_identity.short(was)}, not {store_identity.short(now)}{more}"


def set_aside_unlike(game: Lineage, of_base: Sequence[EvalReport]) -> None:
    """Set aside controls' scores that were made otherwise than θ_0's are now, and are not asked for any more."""
    want = {report.suite: compared(report.path) for report in of_base}
    for manifest in sorted((game.root / "controls").glob(f"*/eval/[!.]*/{store_identity.MANIFEST}")):
        folder = manifest.parent
        if folder.name in want and compared(folder) != want[folder.name]:
            set_aside(folder)


def set_aside(folder: Path) -> None:
    """Keep a published report where no leaderboard looks."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published"
    kept = earlier(folder, manifest["identity"])
    kept.parent.mkdir(exist_ok=True)
    if kept.exists():
        shutil.rmtree(kept)  # the same once more
    folder.replace(kept)


def earlier(output: Path, identity: Any) -> Path:
    """Where a report of that identity is kept."""
    return output.parent / EARLIER / f"{output.name}-{store_identity.digest_of(identity)[:16]}"


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that made a published report."""
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None, f"{folder} is published"
    return {name: manifest["identity"][name] for name in SETTINGS if name in manifest["identity"]}


def compared(folder: Path) -> dict[str, Any]:
    """Those among them that are alike for all models of a leaderboard."""
    return {name: value for name, value in settings_of(folder).items() if name in ALIKE}


def place(output: Path) -> str:
    """`iter_01 · self-play`: whose score lies there, and of which suite."""
    return f"{output.parent.parent.name} · {output.name}"
