"""Votes of people who compared two versions without knowing which is which, and the score that they make.

Each vote is a row in the lineage's `votes.jsonl`, written at once. The votes on a version are the suite `votes` of that
version: a win rate against each other version, with Wilson's interval. A tie is half a win.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from spin_core.config.base import Frozen
from spin_core.errors import DamagedArtifact
from spin_core.evaluation.items import ITEMS, mean
from spin_core.evaluation.mt_bench.verdicts import wilson_interval
from spin_core.leaderboard.board import VOTES
from spin_core.lineage.lineage import Lineage
from spin_core.store import artifacts, identity
from spin_core.store.journal import Journal
from spin_core.store.records import EvalReport, ModelVersion, Score


class Vote(Frozen):
    """One comparison of the answers of two versions to one question."""

    id: str
    """The time of the vote, which no other vote has."""
    t: int
    digest: str
    """The digest of θ_t, the version that the vote is about."""
    against: int
    against_digest: str
    value: float = Field(ge=0, le=1)
    """1 if the answer of θ_t is better, 0 if the other one is, .5 for a tie."""
    question: str


def add_vote(lineage: Lineage, vote: Vote) -> None:
    """Write a vote into the lineage's file."""
    Journal(_file(lineage)).add(vote.model_dump(mode="json"))


def read_votes(lineage: Lineage) -> list[Vote]:
    """All votes on the versions of a lineage. Raises `DamagedArtifact` if the file has other content."""
    try:
        return [Vote.model_validate(row) for row in Journal(_file(lineage)).rows]
    except (ValueError, ValidationError) as error:
        raise DamagedArtifact(
            f"{_file(lineage)} has a line that is not a vote: remove that line, or the file to vote again"
        ) from error


def publish_votes(lineage: Lineage, version: ModelVersion) -> EvalReport | None:
    """Publish the suite `votes` of a version in place of the one before; None without votes on these very weights.

    The caller holds the lineage's lock.
    """
    votes = [vote for vote in read_votes(lineage) if vote.digest == version.digest]
    if not votes:
        return None
    final = lineage.eval_folder(version.t) / VOTES
    scratch = final.with_name(f".{VOTES}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    rows = [{"task": _score_name(vote), "item": vote.id, "value": vote.value} for vote in votes]
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), scratch / "items.parquet")
    of_name: dict[str, list[Vote]] = {}
    for vote in votes:
        of_name.setdefault(_score_name(vote), []).append(vote)
    made_from = {"phase": VOTES, "player": version.digest, "votes": identity.digest_of({"rows": rows})}
    fields = {
        "model": version.digest,
        "suite": VOTES,
        "harness": "blind votes in spin chat",
        "scores": {name: _win_rate(name, part).model_dump() for name, part in of_name.items()},
        "notes": tuple(_note(name, part) for name, part in of_name.items()),
    }
    return artifacts.publish(scratch, final, made_from, fields, EvalReport)


def _file(lineage: Lineage) -> Path:
    """The lineage's file of votes."""
    return lineage.root / "votes.jsonl"


def _score_name(vote: Vote) -> str:
    """`votes_against_0`."""
    return f"{VOTES}_against_{vote.against}"


def _win_rate(name: str, votes: list[Vote]) -> Score:
    """The share of votes that a version has won."""
    score = mean(np.array([vote.value for vote in votes]), name)
    return score.model_copy(update={"interval": wilson_interval(score.value, score.n)})


def _note(name: str, votes: list[Vote]) -> str:
    """The votes in words."""
    counts = Counter(vote.value for vote in votes)
    return f"{name}: won {counts[1.0]}, tied {counts[0.5]} and lost {counts[0.0]} blind votes"
