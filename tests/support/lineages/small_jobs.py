"""Small jobs of scoring and training, with pairs and prompts of random tokens on disk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.config.model import ModelConfig
from spin_core.config.train import TrainConfig
from spin_core.models.loading import load_model
from spin_core.models.logps import response_logps
from spin_core.phases import score, train
from spin_core.preflight.sizes import micro_batch_tokens
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.runtime.ranks import Ranks
from spin_core.store import identity
from spin_core.store.jobs import Job, ScoreJob, TrainJob
from spin_core.store.records import ModelVersion, PairDataset, PromptSet, ScoredPairs, TrainRun
from spin_core.training.gradient import forward_backward
from spin_core.training.objective import objective_of
from spin_core.training.optim import SingleDeviceStepper
from spin_core.training.player import prepare
from spin_core.training.train_data import Batch, TrainData, batch_of, read_data

CPU = ModelConfig(device="cpu")
TOKENS = pa.list_(pa.int32())


def version_of(folder: Path, t: int = 0) -> ModelVersion:
    """θ_t's record, made from the files in the folder."""
    return ModelVersion(path=folder, digest=identity.digest_folder(folder)[0], t=t, parent=None)


def token_ids(rng: np.random.Generator, rows: int, shortest: int, longest: int) -> list[list[int]]:
    """Rows of random token ids, none of them special."""
    return [rng.integers(4, 100, rng.integers(shortest, longest + 1)).tolist() for _ in range(rows)]


def write_pairs(folder: Path, prompts: list, real: list, generated: list) -> PairDataset:
    """Write `pairs.parquet` with the columns that scoring and training read."""
    folder.mkdir(parents=True)
    columns = {"prompt_ids": prompts, "real_ids": real, "generated_ids": generated}
    pq.write_table(pa.table({name: pa.array(rows, TOKENS) for name, rows in columns.items()}), folder / "pairs.parquet")
    rows = len(prompts)
    digest = identity.digest_folder(folder)[0]
    return PairDataset(path=folder, digest=digest, t=0, rows_in=rows, rows=rows, drops={}, mix={"0": rows})


def random_pairs(folder: Path, rows: int = 24, seed: int = 0, longest: int = 12) -> PairDataset:
    """Pairs of random tokens, of different lengths."""
    rng = np.random.default_rng(seed)
    return write_pairs(
        folder, token_ids(rng, rows, 1, 6), token_ids(rng, rows, 2, longest), token_ids(rng, rows, 2, longest)
    )


def random_prompts(folder: Path, rows: int = 24, seed: int = 0) -> PromptSet:
    """SFT data of random tokens."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    columns = {"prompt_ids": token_ids(rng, rows, 1, 6), "response_ids": token_ids(rng, rows, 2, 12)}
    pq.write_table(pa.table({name: pa.array(rows, TOKENS) for name, rows in columns.items()}), folder / "train.parquet")
    digest = identity.digest_folder(folder)[0]
    return PromptSet(path=folder, digest=digest, source="random", revision=None, rows=rows, held_out=0, drops={})


def score_job(output: Path, opponent: ModelVersion, pairs: PairDataset, **fields) -> ScoreJob:
    """A job that scores these pairs under the opponent."""
    fields = {"model": CPU, "micro_batch_tokens": 512, **fields}
    return ScoreJob(output=output, t=opponent.t, opponent=opponent, pairs=pairs, **fields)


def train_job(
    folder: Path, start: ModelVersion, pairs: PairDataset, scores: ScoredPairs, model: ModelConfig = CPU, **config
) -> TrainJob:
    """A job that trains on these pairs. Keyword arguments are settings of `TrainConfig`, or the job's `steps`."""
    steps = config.pop("steps", None)
    return TrainJob(
        output=folder / "train",
        weights=folder / "model",
        t=start.t,
        config=TrainConfig(**{"batch_size": 8, "learning_rate": 1e-3, "epochs": 1, **config}),
        model=model,
        start=start,
        pairs=pairs,
        scores=scores,
        steps=steps,
    )


def random_train_job(folder: Path, model: Path, model_config: ModelConfig = CPU, **config) -> TrainJob:
    """A job that trains on random pairs, which are scored here under the model."""
    start, pairs = version_of(model), random_pairs(folder / "pairs")
    scores = run_job(score_job(folder / "scores", start, pairs, model=model_config))
    return train_job(folder, start, pairs, scores, model_config, **config)


def run_job(job: Job, progress: runtime_progress.Progress | None = None):
    """Run a job of scoring or training in this process; returns its record."""
    stdout = sys.stdout
    try:
        module, record = (score, ScoredPairs) if isinstance(job, ScoreJob) else (train, TrainRun)
        return phase.execute(job, record, module.run, progress or runtime_progress.Progress())
    finally:
        sys.stdout = stdout  # Progress redirects it


def stepper_of(job: TrainJob) -> SingleDeviceStepper:
    """The job's model, prepared for training on one device."""
    network = response_logps(load_model(job.start.path, job.model), job.config.speed)
    prepare(network.model, job.config)
    return SingleDeviceStepper(network, job.config)


def data_of(job: TrainJob) -> TrainData:
    """What the job trains on."""
    return read_data(job, job.output.with_name("tokens"))


def laid_out(data: TrainData, items: np.ndarray, config: TrainConfig, *, packed: bool) -> Batch:
    """These items as one batch, as a training with this configuration lays them out."""
    most, sharing = micro_batch_tokens(config), config.speed.prefix_sharing
    return batch_of(data, items, Ranks(), most, packed=packed, prefix_sharing=sharing)


def batch_metrics(job: TrainJob, stepper: SingleDeviceStepper, items: np.ndarray) -> dict[str, float]:
    """The metrics of one forward and backward pass over these items."""
    batch = laid_out(data_of(job), items, job.config, packed=stepper.network.packed)
    measured = forward_backward(batch, objective_of(job.config, job.t), stepper, Ranks(), stepper.network.model.device)
    return {name: value.item() for name, value in measured.metrics.items()}


def start_job(job: Job, folder: Path) -> subprocess.Popen:
    """Start a job in its own process, as tasks do; its log is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(job.model_dump_json())
    with (folder / "stderr.txt").open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", f"spin_core.phases.{job.phase}", str(folder / "job.json")],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def wait_for_progress(process: subprocess.Popen, done: float) -> float:
    """Read the process's progress until `done` is reached; returns the last value."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if message.get("done", 0) >= done:
            return message["done"]
    raise AssertionError(f"the process ended with status {process.wait()} before {done} were done")
