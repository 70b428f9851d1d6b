"""Phase `score`: the opponent's log-probabilities of every pair: `python -m spin_core.phases.score JOB`.

Training then holds one model, not two. Pairs that were carried over are scored again, since the opponent is another.
Several ranks hold the model each, and score a share of the prompts.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spin_core.data.batches import assign_ranks
from spin_core.data.sequences import Ints, Sequences, TokenIds, read_token_ids
from spin_core.errors import STOPPED, Stopped
from spin_core.models.loading import load_model
from spin_core.models.logps import ResponseLogps, group_sequences, network_of, score_sequences
from spin_core.runtime import ranks
from spin_core.runtime.phase import main
from spin_core.runtime.progress import Progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import files
from spin_core.store.jobs import ScoreJob
from spin_core.store.records import ModelVersion, ScoredPairs

log = logging.getLogger("spin_core")

BLOCK = 1024
"""Sequences that each rank scores between two saves."""


def run(job: ScoreJob, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write `logps.parquet`: real_logps and generated_logps of each pair, float32, in the pairs' order.

    With θ_0 in the job, real_base_logps and generated_base_logps follow.
    """
    prompts, *responses = read_token_ids(job.pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    # A pair's responses lie side by side, so that they are in one block and their prompt is computed once.
    both = [ids for pair in zip(*responses, strict=True) for ids in pair]
    prompt_ids, response_ids, place = distinct([prompt for prompt in prompts for _ in responses], both)
    log.info("%d pairs hold %d distinct responses", len(prompts), len(prompt_ids))
    blocks = scratch / "blocks"
    models = {"": job.opponent} if job.base is None else {"": job.opponent, "_base": job.base}
    # By digest, so that an opponent that is θ_0 is scored once.
    versions = {version.digest: version for version in models.values()}
    progress.start(len(prompt_ids) * len(versions), "response")
    scored = {
        digest: score_all(job, version, prompt_ids, response_ids, blocks, progress, number)
        for number, (digest, version) in enumerate(versions.items())
    }
    if not ranks.here().first:  # the first rank has them all, and writes
        return {}
    columns: dict[str, npt.NDArray[np.float32]] = {}
    for name, version in models.items():
        sides = scored[version.digest][place].reshape(-1, 2).T
        columns |= {f"{side}{name}_logps": logps for side, logps in zip(("real", "generated"), sides, strict=True)}
    pq.write_table(pa.table(columns), scratch / "logps.parquet")
    shutil.rmtree(blocks, ignore_errors=True)
    return {"pairs": job.pairs.digest, "opponent": job.opponent.digest}


def distinct(
    prompt_ids: list[npt.NDArray[np.int32]], response_ids: list[npt.NDArray[np.int32]]
) -> tuple[list[TokenIds], list[TokenIds], npt.NDArray[np.int64]]:
    """Each prompt with each response once, in order of first appearance, and where each row's is.

    A pair that was carried over has the same real response as this iteration's pair: it is scored once.
    """
    seen: dict[tuple[bytes, bytes], int] = {}
    place = np.empty(len(prompt_ids), np.int64)
    first: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        place[row] = seen.setdefault((prompt.tobytes(), response.tobytes()), len(first))
        if place[row] == len(first):
            first.append(row)
    return [prompt_ids[row] for row in first], [response_ids[row] for row in first], place


def groups(prompt_ids: list[TokenIds]) -> Ints:
    """A number for each distinct prompt."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(np.asarray(prompt).tobytes(), len(seen)) for prompt in prompt_ids], np.int64)


def score_all(
    job: ScoreJob,
    version: ModelVersion,
    prompt_ids: list[TokenIds],
    response_ids: list[TokenIds],
    blocks: Path,
    progress: Progress,
    number: int,
) -> npt.NDArray[np.float32]:
    """Log-probabilities under one model: on the first rank (S,), on the others those that were not known before.

    Blocks that an earlier attempt saved are read, not computed. They follow one another without a gap, and are as long
    as that attempt had ranks. `number` models have been scored before.
    """
    us, total = ranks.here(), len(prompt_ids)
    parts = saved(blocks, number) if us.first else []
    done = int(us.total(sum(map(len, parts)) if us.first else 0))
    logps: ResponseLogps | None = None
    if done:
        tell(progress, us, number * total + done)
    while done < total:
        logps = logps or network_of(load_model(version.path, job.model), job.speed)
        end = min(done + BLOCK * us.size, total)
        parts.append(score_block(job, logps, prompt_ids[done:end], response_ids[done:end], us))
        if us.first:
            save(parts[-1], blocks / f"{number}-{done:09d}.npy")
        done = end
        tell(progress, us, number * total + done)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def score_block(
    job: ScoreJob, logps: ResponseLogps, prompt_ids: list[TokenIds], response_ids: list[TokenIds], us: Ranks
) -> npt.NDArray[np.float32]:
    """Log-probabilities of a block, (S,), the same on each rank.

    Each scores prompts with all their responses, and the results come together as a sum with zeros.
    """
    group_S = groups(prompt_ids) if logps.packed and job.speed.prefix_sharing else None
    shared_S, tokens_G = group_sequences(Sequences.of(prompt_ids, response_ids), group_S)
    mine_S = np.flatnonzero(assign_ranks(tokens_G, us.size)[shared_S] == us.rank)
    sequences = Sequences.of([prompt_ids[row] for row in mine_S], [response_ids[row] for row in mine_S])
    own_S = score_sequences(logps, sequences, job.micro_batch_tokens, None if group_S is None else group_S[mine_S])
    found_S = torch.zeros(len(prompt_ids), dtype=torch.float32)
    found_S[torch.from_numpy(mine_S)] = own_S
    scores_S: npt.NDArray[np.float32] = us.sum(found_S.to(logps.model.device)).cpu().numpy()
    return scores_S


def saved(blocks: Path, number: int) -> list[npt.NDArray[np.float32]]:
    """The blocks of a model that an earlier attempt saved, in order."""
    blocks.mkdir(exist_ok=True)
    return [np.load(path, allow_pickle=False) for path in sorted(blocks.glob(f"{number}-*.npy"))]


def save(scores: npt.NDArray[np.float32], path: Path) -> None:
    """Write a block; half of one is never there."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, scores, allow_pickle=False)
    files.sync(partial)
    partial.replace(path)


def tell(progress: Progress, us: Ranks, done: int) -> None:
    """Report, where all is saved; raises `Stopped` on all ranks if SIGTERM reached one of them."""
    progress.show(done)
    if us.any(progress.stopping):
        raise Stopped(STOPPED)


if __name__ == "__main__":
    main(ScoreJob, ScoredPairs, run)
