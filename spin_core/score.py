"""The opponent's log-probability of both responses of every pair, once an iteration: `python -m spin_core.score`.

Training then holds one model, not two. Pairs that were carried over are scored again, since the opponent is another.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core import store
from spin_core.batches import Ints, Sequences, TokenIds, read_token_ids
from spin_core.jobs import ScoreJob
from spin_core.logps import ResponseLogps, network_of, score_sequences
from spin_core.models import load_model
from spin_core.phase import Progress, main
from spin_core.records import ModelVersion, ScoredPairs

log = logging.getLogger("spin_core")

BLOCK = 1024
"""Sequences scored between two saves."""


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
        digest: score_all(job, version, prompt_ids, response_ids, blocks, progress, number)[place]
        for number, (digest, version) in enumerate(versions.items())
    }
    columns: dict[str, npt.NDArray[np.float32]] = {}
    for name, version in models.items():
        sides = scored[version.digest].reshape(-1, 2).T
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
    """Log-probabilities under one model, (S,). Blocks that an earlier attempt saved are read, not computed.

    `number` models have been scored before.
    """
    blocks.mkdir(exist_ok=True)
    total = len(prompt_ids)
    logps: ResponseLogps | None = None
    parts: list[npt.NDArray[np.float32]] = []
    for start in range(0, total, BLOCK):
        end = min(start + BLOCK, total)
        path = blocks / f"{number}-{start:09d}.npy"
        if path.exists():
            parts.append(np.load(path, allow_pickle=False))
        else:
            logps = logps or network_of(load_model(version.path, job.model), job.speed)
            sequences = Sequences.of(prompt_ids[start:end], response_ids[start:end])
            group_S = groups(prompt_ids[start:end]) if job.speed.prefix_sharing else None
            parts.append(score_sequences(logps, sequences, job.micro_batch_tokens, group_S).numpy())
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                np.save(file, parts[-1], allow_pickle=False)
            store.sync(partial)
            partial.replace(path)
        progress.tell(number * total + end)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


if __name__ == "__main__":
    main(ScoreJob, ScoredPairs, run)
