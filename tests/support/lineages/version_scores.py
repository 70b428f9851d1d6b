"""The jobs that score a version, with the settings of the demo."""

from pathlib import Path
from typing import Any

from spin_core.config.resolve import resolve
from spin_core.config.run import RunConfig
from spin_core.lineage import suite_jobs
from spin_core.lineage.lineage import Lineage
from spin_core.store import identity as store_identity
from spin_core.store.records import ModelVersion, PromptSet

NO_PROMPTS = PromptSet(path=Path(), digest="0" * 64, source="", revision=None, rows=0, held_out=0, drops={})


def settings(*sets: str) -> RunConfig:
    """The demo's settings with these, and with no suite but those that they name."""
    off = ("evaluate.self_play=false", "evaluate.exact=false", "evaluate.frontier=[]")
    return resolve("demo", sets=["model.device=cpu", *off, *sets])


def jobs_of(runs: Path, player: ModelVersion, *sets: str, name: str = "tale") -> list[Any]:
    """The jobs that score a version."""
    return suite_jobs.evaluate_jobs(Lineage(runs, name, settings(*sets)), player, NO_PROMPTS, None)


def identity(job: Any) -> str:
    """The digest of what the job's result depends on."""
    return store_identity.digest_of(store_identity.identity_of(job))
