"""Small benchmarks: random questions, a tiny random model, jobs on them, and scores computed by hand."""

import json
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import torch

from spin_core.data.tokenizer import load_tokenizer
from spin_core.models.files import save_model
from spin_core.models.loading import load_model
from spin_core.phases.benchmark import run
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
from spin_core.store.records import EvalReport
from tests.support.lineages.small_jobs import CPU, version_of

SENTENCE = "red sun dog runs fast over the old green hill and sleeps near a blue lake while cold rain falls"

WORDS = SENTENCE.split()

ROWS = 16


def phrase(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def question_rows(seed, choices=4):
    """Questions whose choices have unlike lengths, so that normalising by length matters."""
    rng = Random(seed)
    return [
        {
            "question": f"Fact {i}: {phrase(rng, 4)}?",
            "choices": [phrase(rng, rng.randint(1, 3)) for _ in range(choices)],
            "label": rng.randrange(choices),
        }
        for i in range(ROWS)
    ]


def write_rows(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    rng = Random(9)
    for seed, name in enumerate(["arc_easy_test", "arc_challenge_test", "arc_challenge_train", "openbookqa_test"]):
        write_rows(folder, name, question_rows(seed))
    hellaswag = [
        {**row, "question": f"Walking: The dog runs. {'the' if i % 2 else 'The'} man{'' if i % 2 else ' stops.'}"}
        for i, row in enumerate(question_rows(4))
    ]
    write_rows(folder, "hellaswag_val", hellaswag)
    winogrande = [
        {"question": f"The {first} met the {second} as _ {phrase(rng, 3)}.", "choices": [first, second], "label": i % 2}
        for i, (first, second) in enumerate((rng.choice(WORDS), rng.choice(WORDS) + "s") for _ in range(ROWS))
    ]
    write_rows(folder, "winogrande_dev", winogrande)
    for name in ("mmlu_test", "mmlu_dev"):
        subjects = ["anatomy"] * 4 + ["virology"] * 12
        rows = [{"subject": s, **row} for s, row in zip(subjects, question_rows(len(name)), strict=True)]
        write_rows(folder, name, rows)
    targets = [
        {"question": row["question"], "mc1_choices": row["choices"], "mc1_labels": [1, 0, 0, 0],
         "mc2_choices": row["choices"], "mc2_labels": [1, 1, 0, 0]}
        for row in question_rows(7)
    ]  # fmt: skip
    write_rows(folder, "truthfulqa_mc", targets)
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def benchmark_job(
    output: Path, model: Path, data: Path | None, *tasks: str, num_fewshot=None, limit=None, batch_size=8, **config
) -> BenchmarkJob:
    named = [BenchmarkTask(name=name, num_fewshot=num_fewshot, limit=limit) for name in tasks]
    speed = BenchmarkSpeed(batch_size=batch_size, scores=output.parent / ".scores")
    settings = BenchmarkConfig(suite="lm-eval", tasks=named, local_data=data, speed=speed, **config)
    return BenchmarkJob(output=output, config=settings, model=CPU, player=version_of(model))


def run_benchmark(job: BenchmarkJob) -> EvalReport:
    return phase.execute(job, EvalReport, run, runtime_progress.Progress())


def items(report: EvalReport, task: str) -> list[float]:
    table = pq.read_table(report.path / "items.parquet").to_pylist()
    return [row["value"] for row in table if row["task"] == task]


class ByHand:
    """Log-likelihoods of texts, one at a time, from the model's own loss."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_model(folder, CPU), load_tokenizer(folder, CPU)

    def logp(self, context: str, continuation: str) -> float:
        before = self.tokenizer(context)["input_ids"]
        whole = self.tokenizer(context + continuation)["input_ids"]
        labels = torch.tensor([[-100] * len(before) + whole[len(before) :]])
        with torch.inference_mode():
            loss = self.model(torch.tensor([whole]), labels=labels).loss.item()
        return -loss * (len(whole) - len(before))

    def right(self, context: str, choices: list[str], label: int) -> tuple[float, float]:
        """acc and acc_norm of one item."""
        logps = [self.logp(context, f" {choice}") for choice in choices]
        by_length = [logp / len(choice) for logp, choice in zip(logps, choices, strict=True)]
        return float(logps.index(max(logps)) == label), float(by_length.index(max(by_length)) == label)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    """The tiny model with larger weights, so that its answers depend on the prompt."""
    folder = tmp_path_factory.mktemp("model")
    large = load_model(tiny_model, CPU)
    with torch.no_grad():
        for name, weights in large.named_parameters():
            if "norm" not in name:
                weights.mul_(15)
    save_model(large, load_tokenizer(tiny_model, CPU), folder)
    return folder


@pytest.fixture(scope="module")
def by_hand(model):
    return ByHand(model)


@pytest.fixture(scope="module")
def report(tmp_path_factory, model, data):
    tasks = ("arc_easy", "openbookqa", "hellaswag", "winogrande", "mmlu", "truthfulqa_mc2")
    return run_benchmark(benchmark_job(tmp_path_factory.mktemp("eval") / "lm-eval", model, data, *tasks))
