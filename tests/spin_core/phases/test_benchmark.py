"""The benchmark phase, on a tiny real model, checked against log-likelihoods that are computed by hand."""

import json
import signal
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from spin_core.data.tokenizer import load_tokenizer
from spin_core.errors import ConfigError, DataError, Stopped
from spin_core.evaluation.nltk_data import has_punkt
from spin_core.evaluation.task_rows import SINGLE_TASKS, RowsFolder, convert_rows
from spin_core.evaluation.task_scores import scores_and_items, subset
from spin_core.models.files import save_model
from spin_core.models.loading import load_model
from spin_core.phases.benchmark import run
from spin_core.runtime import phase
from spin_core.runtime import progress as runtime_progress
from spin_core.store import artifacts
from spin_core.store.evaluation_jobs import BenchmarkConfig, BenchmarkJob, BenchmarkSpeed, BenchmarkTask
from spin_core.store.records import EvalReport
from tests.support.helpers import character_tokenizer, data_folder, save_tiny_model
from tests.support.lineages.small_jobs import CPU, start_job, version_of, wait_for_progress

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


def do(job: BenchmarkJob) -> EvalReport:
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
    """The tiny model with larger weights: what it says depends on what it has read."""
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
    return do(benchmark_job(tmp_path_factory.mktemp("eval") / "lm-eval", model, data, *tasks))


CONTEXTS = {
    "arc_easy": ("arc_easy_test", lambda question: f"Question: {question}\nAnswer:"),
    "openbookqa": ("openbookqa_test", lambda question: question),
    "hellaswag": ("hellaswag_val", lambda question: question.replace(". the man", ". The man")),
}


@pytest.mark.parametrize("task", CONTEXTS)
def test_accuracies_are_those_of_a_hand_computation_item_by_item(task, report, data, by_hand):
    file, context = CONTEXTS[task]
    right = [
        by_hand.right(context(row["question"]), row["choices"], row["label"]) for row in read(data / f"{file}.jsonl")
    ]
    assert items(report, f"{task}/acc") == [acc for acc, _ in right]
    assert items(report, task) == [norm for _, norm in right]
    assert report.scores[task].value == pytest.approx(sum(norm for _, norm in right) / ROWS)
    assert report.scores[f"{task}/acc"].value == pytest.approx(sum(acc for acc, _ in right) / ROWS)


def test_the_hand_computation_is_not_right_by_chance(report):
    values = {tuple(items(report, name)) for name in report.scores if name.split("/")[0] in CONTEXTS}
    assert len([one for one in values if 2 <= sum(one) <= ROWS - 2]) >= 4


def test_winogrande_scores_the_end_of_the_sentence_behind_each_filling(report, data, by_hand):
    right = []
    for row in read(data / "winogrande_dev.jsonl"):
        before, _, after = row["question"].partition("_")
        logps = [by_hand.logp(before + filling, f" {after.strip()}") for filling in row["choices"]]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "winogrande") == right
    assert report.scores["winogrande"].value == pytest.approx(sum(right) / ROWS)


def test_mmlu_averages_over_the_items_of_all_its_subjects(report, data, by_hand):
    right = []
    for row in read(data / "mmlu_test.jsonl"):
        lines = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        head = f"The following are multiple choice questions (with answers) about {row['subject']}.\n\n"
        logps = [by_hand.logp(f"{head}{row['question']}{lines}\nAnswer:", f" {letter}") for letter in "ABCD"]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "mmlu") == right
    assert report.scores["mmlu"].value == pytest.approx(sum(right) / ROWS)
    assert report.scores["mmlu"].n == ROWS
    names = [row["item"] for row in pq.read_table(report.path / "items.parquet").to_pylist() if row["task"] == "mmlu"]
    assert names == [f"mmlu_anatomy/{i}" for i in range(4)] + [f"mmlu_virology/{i}" for i in range(12)]


def test_truthfulqa_weighs_the_probability_of_the_true_answers(report):
    values = items(report, "truthfulqa_mc2")
    assert len(values) == ROWS
    assert all(0 <= value <= 1 for value in values)
    assert len([value for value in values if 0.01 < value < 0.99]) > 2  # weights, not hits
    assert report.scores["truthfulqa_mc2"].value == pytest.approx(sum(values) / ROWS)


def test_errors_are_those_of_the_mean(report):
    for name, score in report.scores.items():
        values = torch.tensor(items(report, name), dtype=torch.float64)
        assert score.n == len(values) == {"mmlu_anatomy": 4, "mmlu_virology": 12}.get(name, ROWS)
        if name != "mmlu":  # lm-eval pools its subjects' errors
            assert score.stderr == pytest.approx(values.std().item() / score.n**0.5)
        assert (score.stderr > 0) == (len(set(values.tolist())) > 1)
        assert score.higher_is_better


def test_the_report_names_the_model_and_the_harness(report, model):
    assert (report.suite, report.model) == ("lm-eval", version_of(model).digest)
    assert report.harness.startswith("lm-eval 0.")
    assert report.notes == ("mmlu: 2 of its 57 tasks have rows, and the score is theirs alone",)
    assert sorted(path.name for path in report.path.iterdir()) == ["items.parquet", "manifest.json", "samples.parquet"]
    assert artifacts.verify(report.path) == []


def test_the_same_job_gives_the_same_bytes(tmp_path, model, data):
    one, other = (do(benchmark_job(tmp_path / name / "x", model, data, "arc_easy")) for name in ("one", "other"))
    assert one.digest == other.digest


def test_examples_in_the_prompt_are_those_that_lm_eval_draws_from_the_training_rows(tmp_path, model, data, by_hand):
    report = do(benchmark_job(tmp_path / "lm-eval", model, data, "arc_challenge", num_fewshot=2))
    training, rng, right = read(data / "arc_challenge_train.jsonl"), Random(1234), []
    for row in read(data / "arc_challenge_test.jsonl"):
        examples = [
            f"Question: {example['question']}\nAnswer: {example['choices'][example['label']]}\n\n"
            for example in rng.sample(training, 2)
        ]
        context = "".join(examples) + f"Question: {row['question']}\nAnswer:"
        right.append(by_hand.right(context, row["choices"], row["label"])[0])
    assert items(report, "arc_challenge/acc") == right
    bare = do(benchmark_job(tmp_path / "bare", model, data, "arc_challenge"))
    assert items(bare, "arc_challenge/acc") != right
    assert report.notes == ()


def test_examples_from_the_evaluated_rows_are_noted(tmp_path, model, data):
    report = do(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", num_fewshot=2))
    assert report.notes == ("winogrande: examples in the prompt come from the rows that are evaluated",)


def test_a_limit_takes_a_seeded_part_of_the_items(tmp_path, model, data, report):
    job = benchmark_job(tmp_path / "lm-eval", model, data, "arc_easy", limit=5)
    few = do(job)
    rows = [row for row in pq.read_table(few.path / "items.parquet").to_pylist() if row["task"] == "arc_easy"]
    assert few.scores["arc_easy"].n == len(rows) == 5
    chosen = [int(row["item"]) for row in rows]
    assert chosen == subset(ROWS, 5, 0, "arc_easy")
    assert [row["value"] for row in rows] == [items(report, "arc_easy")[i] for i in chosen]


def test_a_smaller_limit_is_part_of_a_larger_one_and_the_seed_matters():
    assert set(subset(1000, 20, 0, "arc_easy")) < set(subset(1000, 50, 0, "arc_easy"))
    assert subset(1000, 20, 0, "arc_easy") != subset(1000, 20, 1, "arc_easy")
    assert subset(1000, 20, 0, "arc_easy") == sorted(subset(1000, 20, 0, "arc_easy"))


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many sequences lm-eval's model is given, batch by batch."""
    found: list[int] = []

    def counted(ask):
        def call(self, *args, **kwargs):
            found.append(len(args[0] if args else kwargs["context"]))
            return ask(self, *args, **kwargs)

        return call

    for name in ("_model_call", "_model_generate"):
        monkeypatch.setattr(HFLM, name, counted(getattr(HFLM, name)))
    return found


def test_a_stopped_run_keeps_finished_tasks_and_the_answers_of_the_next(tmp_path, model, data, batches, monkeypatch):
    whole = do(benchmark_job(tmp_path / "other" / "whole", model, data, "arc_easy", "winogrande"))
    undisturbed = [batches.pop(0) for _ in range(12)]
    assert not batches
    job, progress = (
        benchmark_job(tmp_path / "stopped", model, data, "arc_easy", "winogrande"),
        runtime_progress.Progress(),
    )
    monkeypatch.setattr(progress, "show", lambda done: progress.stop() if done >= 1.5 else None)
    with pytest.raises(Stopped):
        phase.execute(job, EvalReport, run, progress)
    assert kept(tmp_path) == ["arc_easy"]
    assert batches == undisturbed[:10]
    again = do(job)
    assert batches == undisturbed
    assert (again.digest, again.scores) == (whole.digest, whole.scores)
    assert kept(tmp_path) == ["arc_easy", "winogrande"]


@pytest.mark.slow
def test_a_run_that_is_killed_within_a_task_requests_only_the_rest(tmp_path, model, batches):
    # A context of 512 tokens: each prompt is longer than that, and each answer, of half of it, takes part of a second.
    network, tokenizer = load_model(model, CPU), load_tokenizer(model, CPU)
    network.config.max_position_embeddings = 512
    model = tmp_path / "short"
    save_model(network, tokenizer, model)
    rows = [{"question": phrase(Random(i), 250 + i), "answer": f"#### {i}"} for i in range(5)]
    write_rows(tmp_path, "gsm8k_test", rows)
    undisturbed, killed = (
        benchmark_job(tmp_path / name / "lm-eval", model, tmp_path, "gsm8k", num_fewshot=0, batch_size=1)
        for name in ("undisturbed", "killed")
    )
    whole = do(undisturbed)
    assert batches == [1] * 5
    batches.clear()
    with start_job(killed, tmp_path) as process:
        before = round(5 * wait_for_progress(process, 0.4))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert kept(tmp_path / "killed") == []
    again = do(killed)
    # One more may have been answered before the signal arrived.
    assert 0 < len(batches) <= 5 - before
    assert (again.digest, again.scores, again.notes) == (whole.digest, whole.scores, whole.notes)
    assert "5 of 5 prompts are longer" in again.notes[0]
    assert not list(tmp_path.rglob(".answers.jsonl"))


def kept(folder: Path) -> list[str]:
    """The tasks whose results are kept, in the order in which they were scored."""
    entries = [path.parent for path in (folder / ".scores").glob("*/scores/manifest.json")]
    entries.sort(key=lambda entry: (entry / "manifest.json").stat().st_mtime)
    return [artifacts.read_record(entry, EvalReport).suite for entry in entries]


def test_a_task_without_rows_is_an_error_that_lists_tasks_with_rows(tmp_path, model, data):
    with pytest.raises(ConfigError, match=r"'gsm8k' has no rows in .*: choose among arc_easy, .*, mmlu") as error:
        do(benchmark_job(tmp_path / "lm-eval", model, data, "gsm8k"))
    assert "openbookqa" in str(error.value)
    with pytest.raises(ConfigError, match="is not a folder"):
        do(benchmark_job(tmp_path / "lm-eval", model, data / "nowhere", "arc_easy"))


def test_more_examples_than_rows_are_rejected(tmp_path, model, data):
    with pytest.raises(DataError, match="winogrande wants 16 examples in its prompt, and has 15 rows for them"):
        do(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", num_fewshot=ROWS))


def test_a_row_in_another_form_is_named(tmp_path, model):
    write_rows(tmp_path, "arc_easy_test", [{"question": "?", "choices": ["a"], "label": 0}, {"question": "?"}])
    with pytest.raises(
        DataError, match=r"arc_easy_test.jsonl, line 2, is not in the form of arc .*: give question, choices"
    ):
        do(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "arc_easy"))
    (tmp_path / "arc_easy_test.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"line 1, is not JSON"):
        do(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "arc_easy"))


def test_a_missing_chat_template_is_an_error(tmp_path, model, data):
    with pytest.raises(ConfigError, match="no chat template"):
        do(benchmark_job(tmp_path / "lm-eval", model, data, "arc_easy", apply_chat_template=True))


def test_a_chat_template_wraps_each_item(tmp_path, data):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    )
    folder = save_tiny_model(tmp_path / "model", character_tokenizer(chat_template=template))
    report = do(benchmark_job(tmp_path / "lm-eval", folder, data, "openbookqa", apply_chat_template=True))
    hand = ByHand(folder)
    right = []
    for row in read(data / "openbookqa_test.jsonl"):
        logps = [hand.logp(f"[user]{row['question']}[bot]", choice) for choice in row["choices"]]
        right.append(float(logps.index(max(logps)) == row["label"]))
    assert items(report, "openbookqa/acc") == right


def test_hellaswags_rows_are_split_as_the_data_set_has_them():
    row = {"question": "Roof: A man sits. he", "choices": ["a", "b"], "label": 1}
    assert SINGLE_TASKS["hellaswag"].convert(row) == {
        "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "endings": ["a", "b"], "label": "1"
    }  # fmt: skip
    whole = {"question": "Style: How to: dress. Do it well.", "choices": ["a"], "label": 0}
    assert SINGLE_TASKS["hellaswag"].convert(whole) | {"endings": []} == {
        "activity_label": "Style", "ctx_a": "How to: dress. Do it well.", "ctx_b": "", "endings": [], "label": "0"
    }  # fmt: skip


def test_an_error_that_lm_eval_does_not_give_is_unknown():
    found = {"acc,none": 1.0, "acc_stderr,none": "N/A", "name": "x", "sample_len": 1}
    scores, rows = scores_and_items(found, [{"doc_id": 3, "filter": "none", "acc": 1.0}], {"acc": True})
    assert scores == {"acc,none": {"value": 1.0, "stderr": None, "n": 1, "higher_is_better": True}}
    assert rows == [("acc,none", "3", 1.0)]


def test_metrics_where_lower_is_better_and_with_several_values_an_item():
    found = {"perplexity,none": 2.0, "places,none": 0.5}
    samples = [{"doc_id": 0, "filter": "none", "perplexity": 2.0, "places": [True, False]}]
    scores, rows = scores_and_items(found, samples, {"perplexity": False, "places": True})
    assert not scores["perplexity,none"]["higher_is_better"]
    assert rows == [("perplexity,none", "0", 2.0)]


def test_samples_have_the_prompt_and_the_log_probability_of_each_choice(report, data, by_hand):
    samples = pq.read_table(report.path / "samples.parquet").to_pylist()
    asked = {task: [row for row in samples if row["task"] == task] for task in ("arc_easy", "winogrande")}
    for row, question in zip(asked["arc_easy"], read(data / "arc_easy_test.jsonl"), strict=True):
        assert row["prompt"] == f"Question: {question['question']}\nAnswer:"
        assert row["choices"] == [f" {choice}" for choice in question["choices"]]
        assert row["target"] == row["choices"][question["label"]]
        assert row["logps"] == pytest.approx([by_hand.logp(row["prompt"], one) for one in row["choices"]], abs=1e-3)
        assert row["answer"] == row["choices"][row["logps"].index(max(row["logps"]))]
        assert json.loads(row["scores"])["acc"] == (row["answer"] == row["target"])
    # Here the choices are what comes before: each has the same end.
    for row, question in zip(asked["winogrande"], read(data / "winogrande_dev.jsonl"), strict=True):
        filled = [question["question"].replace("_", choice) for choice in question["choices"]]
        assert [row["prompt"] + choice for choice in row["choices"]] == filled


def test_samples_have_the_answer_and_what_each_filter_read_in_it(tmp_path, model):
    write_rows(
        tmp_path, "gsm8k_test", [{"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in (3, 4)]
    )
    report = do(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "gsm8k", num_fewshot=1))
    samples = pq.read_table(report.path / "samples.parquet").to_pylist()
    assert [row["item"] for row in samples] == ["0", "1"]
    for row in samples:
        assert row["prompt"].startswith("Question: What is")
        assert row["prompt"].endswith("?\nAnswer:")
        assert row["answer"]
        assert row["choices"] is None
        assert set(json.loads(row["extracted"])) == {"strict-match", "flexible-extract"}
        assert set(json.loads(row["scores"])) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert {"gsm8k", "gsm8k/flexible-extract"} <= set(report.scores)


def test_answers_are_no_longer_than_half_the_context_and_prompts_lose_their_beginning(tmp_path, model):
    rows = [{"task": "causal_judgement", "input": "Did it rain?", "target": "No"}] * 2
    write_rows(tmp_path, "bbh", rows)
    report = do(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "bbh_cot_fewshot_causal_judgement"))
    said = "bbh_cot_fewshot_causal_judgement: "
    assert report.notes == (
        said + "2 of 2 prompts are longer than the model's context of 1,024 tokens, and lost their beginning",
        said + "answers have room for 512 tokens, not 1,024",
    )


def test_ifeval_without_nltks_data_fails_before_it_computes(tmp_path, model):
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path, "ifeval_train", [row, row])
    report = do(benchmark_job(tmp_path / "lm-eval", model, tmp_path, "ifeval"))
    assert set(report.scores) == {
        "ifeval", "ifeval/inst_level_strict_acc", "ifeval/prompt_level_loose_acc", "ifeval/inst_level_loose_acc"
    }  # fmt: skip
    if has_punkt():
        return
    counted = {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{"num_sentences": 2}]}
    write_rows(tmp_path, "ifeval_train", [row, {**row, **counted, "kwargs": [{"relation": "at least"}]}])
    with pytest.raises(DataError, match=r"1 rows of ifeval want sentences .* punkt_tab is not here: run"):
        do(benchmark_job(tmp_path / "again", model, tmp_path, "ifeval"))


@pytest.mark.parametrize("templated", [True, False])
def test_the_chat_template_is_used_if_the_model_has_one_and_the_setting_is_open(tmp_path, templated):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" if templated else None
    folder = save_tiny_model(tmp_path / "model", character_tokenizer(chat_template=template))
    row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path, "ifeval_train", [row])
    report = do(benchmark_job(tmp_path / "instruct", folder, tmp_path, "ifeval", apply_chat_template=None))
    (sample,) = pq.read_table(report.path / "samples.parquet").to_pylist()
    assert sample["prompt"] == ("[user]Say it." if templated else "Say it.")
    assert ("the model has no chat template, and was asked without one" in report.notes) != templated


def test_an_automatic_batch_size_gives_the_same_values(tmp_path, model, data, report):
    found = do(benchmark_job(tmp_path / "lm-eval", model, data, "winogrande", batch_size="auto"))
    assert items(found, "winogrande") == items(report, "winogrande")


def test_a_real_small_model_takes_the_real_benchmarks(tmp_path):
    data, folder = data_folder("benchmarks"), data_folder("models", "babyllama-105")
    tasks = ("arc_easy", "arc_challenge", "openbookqa", "hellaswag", "winogrande")
    report = do(benchmark_job(tmp_path / "lm-eval", folder, data, *tasks, limit=4, num_fewshot=1))
    assert {name for name in report.scores if "/" not in name} == set(tasks)
    assert all(score.n == 4 and 0 <= score.value <= 1 for score in report.scores.values())
    # One character is one token, and the context is 256.
    assert any("longer than the model's context of 256 tokens" in note for note in report.notes)


def test_every_real_row_is_converted():
    folder = RowsFolder(data_folder("benchmarks").parent)
    known = folder.sources()
    assert len([name for name in known if name.startswith("mmlu_")]) == 57
    assert len([name for name in known if name.startswith("bbh_")]) == 27
    for name, rows in {"arc_easy": 2376, "hellaswag": 10042, "gsm8k": 1319, "mmlu_anatomy": 135}.items():
        source = known[name]
        path = folder.find(source.file)
        assert len(list(convert_rows(path, folder.rows(path), source))) == rows
