"""Phase `score`: the opponent's log-probabilities of every pair: `python -m spin_core.phases.score JOB`.

Training then holds one model instead of two. Pairs of the previous iteration are scored again, since their opponent was
another one. With several ranks, each holds the model and scores a share of the prompts.

Shapes: S sequences (a prompt with one response), G groups of sequences that share a prompt.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spin_core.data.batches import assign_ranks
from spin_core.data.files.digests import long_digests_of, number_by_appearance
from spin_core.data.files.token_file import TokenArray, TokenFile
from spin_core.data.sequences import Ints, Sequences
from spin_core.errors import STOPPED, Stopped
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps, group_sequences, response_logps, score_sequences
from spin_core.preflight import fit
from spin_core.runtime import ranks
from spin_core.runtime.memory.batch_limit import BatchLimit
from spin_core.runtime.memory.free import is_out_of_memory
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import files
from spin_core.store.jobs import ScoreJob
from spin_core.store.records import ModelVersion, ScoredPairs

log = logging.getLogger("spin_core")

BLOCK = 1024
"""Sequences that each rank scores between two saves, so the most that a kill costs."""

SIDES = ("real_ids", "generated_ids")
"""The columns with the responses of a pair."""


def run(job: ScoreJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write `logps.parquet`: the columns real_logps and generated_logps, float32, in the pairs' order.

    If the job names θ_0, real_base_logps and generated_base_logps follow.
    """
    world = ranks.current()
    if world.first:
        TokenFile.write(scratch / "tokens", job.pairs.path / "pairs.parquet", "prompt_ids", *SIDES)
    world.wait()
    tokens = TokenFile(scratch / "tokens")
    index, first = distinct(tokens)
    sequences = Responses(tokens, first)
    log.info("%d pairs hold %d distinct responses", len(tokens), len(first))
    blocks = scratch / "blocks"
    models = {"": job.opponent} if job.base is None else {"": job.opponent, "_base": job.base}
    # By digest, so that an opponent that is θ_0 is scored once.
    versions = {version.digest: version for version in models.values()}
    progress.start(len(first) * len(versions), "response")
    limit = fit.open_scoring_limit(job, tokens.lengths_NC, scratch, world)
    with limit.attempt(world):
        scored = {
            digest: _score_all(job, version, sequences, blocks, progress, number, limit)
            for number, (digest, version) in enumerate(versions.items())
        }
    if not world.first:  # the first rank has all scores, and writes
        return {}
    columns: dict[str, npt.NDArray[np.float32]] = {}
    for name, version in models.items():
        pairs = scored[version.digest][index].reshape(-1, 2).T
        columns |= {f"{side}{name}_logps": logps for side, logps in zip(("real", "generated"), pairs, strict=True)}
    pq.write_table(pa.table(columns), scratch / "logps.parquet")
    for folder in (blocks, scratch / "tokens"):
        shutil.rmtree(folder, ignore_errors=True)
    return {"pairs": job.pairs.digest, "opponent": job.opponent.digest}


def distinct(tokens: TokenFile) -> tuple[Ints, Ints]:
    """Find repeated sequences: a pair of the previous iteration has the same real response as one of this iteration.

    Sequences are numbered here by pair and side: those of pair n are 2n and 2n + 1, next to each other, so that one
    block has both and computes their prompt once.

    Returns:
        For each sequence the number of its distinct sequence, counted by first appearance, and for each distinct
        sequence its first place.
    """
    parts = (tokens.read(row) for row in range(len(tokens)))
    return number_by_appearance(
        long_digests_of(
            b"%d:%b%b" % (len(prompt), prompt.tobytes(), response.tobytes())
            for prompt, *responses in parts
            for response in responses
        )
    )


class Responses(NamedTuple):
    """The distinct responses with their prompts, read when they are needed."""

    tokens: TokenFile
    places_S: Ints
    """The first place of each, as `distinct` numbers them."""

    def read(self, begin: int, end: int) -> tuple[list[TokenArray], list[TokenArray]]:
        """The prompts and the responses of some of them."""
        places = self.places_S[begin:end]
        return self.tokens.chosen_sequences(places // len(SIDES), 1 + places % len(SIDES))


def _groups(prompt_ids: Sequence[TokenArray]) -> Ints:
    """For each sequence the number of its prompt, the same for equal prompts."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(prompt.tobytes(), len(seen)) for prompt in prompt_ids], np.int64)


def _score_all(
    job: ScoreJob,
    version: ModelVersion,
    responses: Responses,
    blocks: Path,
    progress: Progress,
    number: int,
    limit: BatchLimit,
) -> npt.NDArray[np.float32]:
    """Log-probabilities under one model, (S,) on the first rank; the other ranks have those of this attempt only.

    Blocks that an earlier attempt saved are read. They follow one another without a gap, so their total length says
    where to go on, even if that attempt had another number of ranks and blocks of another size.

    Args:
        number: How many models were scored before this one.
        limit: Tokens in a pass, which are halved when memory runs out.
    """
    world, total = ranks.current(), len(responses.places_S)
    saved = _saved_blocks(blocks, number) if world.first else []
    done = int(world.total(sum(map(len, saved)) if world.first else 0))
    logps: ResponseLogps | None = None
    if done:
        _report(progress, world, number * total + done)
    while done < total:
        logps = logps or response_logps(load_model(version.path, job.model), job.speed)
        end = min(done + BLOCK * world.size, total)
        saved.append(_score_block(job, logps, *responses.read(done, end), limit, world))
        if world.first:
            _save(saved[-1], blocks / f"{number}-{done:09d}.npy")
        done = end
        _report(progress, world, number * total + done)
    return np.concatenate(saved) if saved else np.zeros(0, np.float32)


def _score_block(
    job: ScoreJob,
    logps: ResponseLogps,
    prompt_ids: list[TokenArray],
    response_ids: list[TokenArray],
    limit: BatchLimit,
    world: Ranks,
) -> npt.NDArray[np.float32]:
    """Log-probabilities of a block, (S,), the same on each rank.

    A rank scores some prompts with all their responses. Each fills in its own results, and zeros elsewhere, so the sum
    over all ranks has them all.
    """
    group_S = _groups(prompt_ids) if logps.packed and job.speed.prefix_sharing else None
    shared_S, tokens_G = group_sequences(Sequences.of(prompt_ids, response_ids), group_S)
    own_S = np.flatnonzero(assign_ranks(tokens_G, world.size)[shared_S] == world.rank)
    sequences = Sequences.of([prompt_ids[row] for row in own_S], [response_ids[row] for row in own_S])
    own_group_S = None if group_S is None else group_S[own_S]
    logps_S = _score_within_memory(logps, sequences, own_group_S, limit)
    scores_S = torch.zeros(len(prompt_ids), dtype=torch.float32)
    scores_S[torch.from_numpy(own_S)] = logps_S
    all_scores_S: npt.NDArray[np.float32] = world.sum(scores_S.to(logps.model.device)).cpu().numpy()
    return all_scores_S


def _score_within_memory(
    logps: ResponseLogps, sequences: Sequences, group_S: Ints | None, limit: BatchLimit
) -> torch.Tensor:
    """Log-probabilities of sequences, (S,), with half as many tokens in a pass each time that memory runs out."""
    while True:
        try:
            return score_sequences(logps, sequences, limit.size, group_S)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not limit.halve(least=int(sequences.lengths_S.max())):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _saved_blocks(blocks: Path, number: int) -> list[npt.NDArray[np.float32]]:
    """The blocks of one model that an earlier attempt saved, in order."""
    blocks.mkdir(exist_ok=True)
    return [np.load(path, allow_pickle=False) for path in sorted(blocks.glob(f"{number}-*.npy"))]


def _save(scores: npt.NDArray[np.float32], path: Path) -> None:
    """Write a block under its name only when it is complete."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, scores, allow_pickle=False)
    files.sync(partial)
    partial.replace(path)


def _report(progress: Progress, world: Ranks, done: int) -> None:
    """Show the progress, after all is saved; raises `Stopped` on all ranks if SIGTERM reached one of them."""
    progress.show(done)
    if world.any(progress.stopping):
        raise Stopped(STOPPED)


if __name__ == "__main__":
    main(ScoreJob, ScoredPairs, run)
