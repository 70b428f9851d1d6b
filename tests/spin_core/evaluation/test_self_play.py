"""The evaluate phase, on a tiny real model that answers the demo's prompts."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spin_core.config.evaluate import EvaluateConfig
from spin_core.config.generate import GenerateConfig
from spin_core.config.resolve import resolve
from spin_core.data import demo
from spin_core.data.repetition import distinct_shares
from spin_core.errors import DataError
from spin_core.evaluation.exact import exact_distances
from spin_core.evaluation.items import mean, write_items
from spin_core.evaluation.self_play import SCHEMA, quality, rewards
from spin_core.leaderboard import board, gate
from spin_core.models.loading import load_model
from spin_core.phases.evaluate import run
from spin_core.runtime import phase, progress
from spin_core.store import artifacts, identity
from spin_core.store.evaluation_jobs import EvaluateJob, EvaluateSpeed
from spin_core.store.records import EvalReport, PromptSet
from tests.support.helpers import data_folder, save_tiny_model
from tests.support.lineages.demo_prompts import prompt_set
from tests.support.lineages.small_jobs import CPU, version_of

ROWS = 24
ALWAYS = {
    "heldout_nll", "real_tokens", "generated_tokens", "length_classifier", "text_classifier", "repeated_trigrams",
    "looping_share", "cut_share", "empty_share",
}  # fmt: skip
DISTINCT = {"distinct_1"}
"""The demo's answers are one word each, so there are no pairs of words."""
EXACT = {"total_variation", "invalid_mass", "forward_kl"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_set(tmp_path_factory.mktemp("prompts") / "prompts", demo.prompts(ROWS)[1])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random models that speak the demo's language."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny_model(root / str(seed), demo.build_tokenizer(), seed) for seed in range(2)]


def evaluate_job(output: Path, model: Path, prompts: PromptSet, t=0, opponent=None, exact=False, **generate):
    return EvaluateJob(
        output=output,
        seed=5,
        config=EvaluateConfig(exact=exact, batch_size=8),
        generate=GenerateConfig(**{"max_new_tokens": 10, "batch_size": 8, **generate}),
        model=CPU,
        player=version_of(model, t),
        prompts=prompts,
        opponent=opponent,
    )


def do(job: EvaluateJob) -> EvalReport:
    return phase.execute(job, EvalReport, run, progress.Progress())


def held_out(report: EvalReport) -> list[dict]:
    return pq.read_table(report.path / "held_out.parquet").to_pylist()


def items(report: EvalReport) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for row in pq.read_table(report.path / "items.parquet").to_pylist():
        assert row["item"] not in values.setdefault(row["task"], {})
        values[row["task"]][row["item"]] = row["value"]
    return values


def logp(model, prompt_ids, response_ids):
    """log p(response | prompt) from the model's own loss, one sequence at a time."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    labels = ids.clone()
    labels[:, : len(prompt_ids)] = -100
    with torch.inference_mode():
        return -model(ids, labels=labels).loss.item() * len(response_ids)


@pytest.fixture(scope="module")
def opponents_report(tmp_path_factory, models, prompts):
    return do(evaluate_job(tmp_path_factory.mktemp("opponent") / "self-play", models[0], prompts))


def test_every_prompt_is_answered_once_and_both_sides_are_scored(opponents_report, prompts, models):
    rows, prompt_rows = held_out(opponents_report), pq.read_table(prompts.path / "held_out.parquet").to_pylist()
    assert pq.read_schema(opponents_report.path / "held_out.parquet").names == SCHEMA.names
    model, tokenizer = load_model(models[0], CPU), demo.build_tokenizer()
    for row, given in zip(rows, prompt_rows, strict=True):
        assert {name: row[name] for name in ("id", "prompt", "prompt_ids")} == {
            name: given[name] for name in ("id", "prompt", "prompt_ids")
        }
        assert (row["real"], row["real_ids"]) == (given["response"], given["response_ids"])
        assert row["generated"] == tokenizer.decode(row["generated_ids"], skip_special_tokens=True)
        assert row["finish_reason"] == ("stop" if row["generated_ids"][-1] == 2 else "length")
        for side in ("real", "generated"):
            want = logp(model, row["prompt_ids"], row[f"{side}_ids"])
            assert row[f"{side}_logps"] == pytest.approx(want, rel=1e-4)


def test_scores_are_the_means_of_their_items(opponents_report):
    assert set(opponents_report.scores) == ALWAYS | DISTINCT
    by_task = items(opponents_report)
    assert set(by_task) == ALWAYS | DISTINCT
    for task, values in by_task.items():
        score, numbers = opponents_report.scores[task], list(values.values())
        # Half of the pairs train the classifier that is judged on the others.
        assert score.n == len(numbers) == (ROWS // 2 if task == "text_classifier" else ROWS)
        assert score.value == pytest.approx(sum(numbers) / score.n)
        assert score.stderr == pytest.approx(np.std(numbers, ddof=1) / math.sqrt(score.n))


def test_scores_are_given_by_source_where_there_are_several(tmp_path, models, prompts, opponents_report):
    assert opponents_report.by_source == {}
    folder = tmp_path / "mixed"
    folder.mkdir()
    table = pq.read_table(prompts.path / "held_out.parquet")
    sources = ["sums", "chat", "sums"] * (ROWS // 3)
    pq.write_table(table.append_column("source", pa.array(sources)), folder / "held_out.parquet")
    mixed = prompts.model_copy(update={"path": folder, "digest": identity.digest_folder(folder)[0]})
    whole = do(evaluate_job(tmp_path / "self-play", models[0], mixed, exact=True))
    assert list(whole.by_source) == ["chat", "sums"]
    by_task, ids = items(whole), table["id"].to_pylist()
    for source, scores in whole.by_source.items():
        own = {id for id, name in zip(ids, sources, strict=True) if name == source}
        assert set(scores) == ALWAYS | EXACT, "no score of all answers together"
        for task, score in scores.items():
            values = [value for id, value in by_task[task].items() if id in own]
            assert (score.n, score.value) == (len(values), pytest.approx(sum(values) / len(values)))
            assert score.stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(score.n))
        assert scores["generated_tokens"].target == pytest.approx(scores["real_tokens"].value)
    one = table.append_column("source", pa.array(["sums"] * ROWS))
    pq.write_table(one, folder / "held_out.parquet")
    alone = mixed.model_copy(update={"digest": identity.digest_folder(folder)[0]})
    assert do(evaluate_job(tmp_path / "alone", models[0], alone)).by_source == {}


def test_heldout_nll_is_nats_a_token_of_the_human_responses(opponents_report):
    want = [-row["real_logps"] / len(row["real_ids"]) for row in held_out(opponents_report)]
    assert list(items(opponents_report)["heldout_nll"].values()) == pytest.approx(want)
    assert not opponents_report.scores["heldout_nll"].higher_is_better
    # A random model over 16 tokens has learned almost nothing.
    assert opponents_report.scores["heldout_nll"].value == pytest.approx(math.log(16), rel=0.1)


def test_how_diverse_versions_are_is_compared_prompt_by_prompt(tmp_path, models, prompts, opponents_report):
    # Answers of one token repeat.
    before, after = opponents_report, do(evaluate_job(tmp_path / "self-play", models[1], prompts, max_new_tokens=1))
    mine, theirs = (report.scores["distinct_1"] for report in (after, before))
    words = [[row["generated"] for row in held_out(report)] for report in (after, before)]
    assert [mine.value, theirs.value] == pytest.approx([distinct_shares(texts)[0] for texts in words])
    (difference,) = board.compare([after], {0: [before]})["distinct_1"]
    assert difference.delta == pytest.approx(mine.value - theirs.value)
    assert difference.low < difference.delta < difference.high
    config = resolve("demo", sets=["gate.metric=distinct_1"])
    decision = gate.decide(config, candidate=(1, [after]), best=(0, [before]))
    assert (decision.delta, decision.stderr) == pytest.approx((difference.delta, difference.stderr))


def test_measures_with_an_optimum_have_the_human_responses_as_target(opponents_report):
    rows, scores = held_out(opponents_report), opponents_report.scores
    assert scores["distinct_1"].target == distinct_shares([row["real"] for row in rows])[0]
    assert scores["generated_tokens"].target == pytest.approx(scores["real_tokens"].value)
    assert {name for name, score in scores.items() if score.merit() is None} == {"real_tokens"}


def test_quality_by_hand():
    table = pa.table(
        {
            "real_ids": [[5, 6, 2], [5, 2]],
            "generated_ids": [[2], [7, 7, 7, 7]],
            "real": ["a b", "c"],
            "generated": [" ", "a b c a b c"],
            "finish_reason": ["stop", "length"],
            "real_logps": [-6.0, -1.0],
        }
    )
    measures = {name: values.tolist() for name, values in quality(table).items()}
    assert measures.pop("length_classifier") is not None
    assert measures.pop("text_classifier") is not None
    assert measures == {
        "heldout_nll": [2, 0.5],
        "real_tokens": [3, 2],
        "generated_tokens": [1, 4],
        "repeated_trigrams": [0, 0.25],
        "looping_share": [0, 0],
        "cut_share": [0, 1],
        "empty_share": [1, 0],
    }


def test_rewards_are_taken_on_the_opponents_own_answers(tmp_path, models, prompts, opponents_report):
    report = do(evaluate_job(tmp_path / "self-play", models[1], prompts, t=1, opponent=opponents_report))
    player, opponent = (load_model(models[seed], CPU) for seed in (1, 0))
    margins = items(report)["reward_margin"]
    for row in held_out(opponents_report):
        sides = [
            logp(player, row["prompt_ids"], row[side]) - logp(opponent, row["prompt_ids"], row[side])
            for side in ("real_ids", "generated_ids")
        ]
        assert margins[row["id"]] == pytest.approx(sides[0] - sides[1], abs=1e-3)
    won = sum(margin > 0 for margin in margins.values())
    assert 0 < won < ROWS
    assert report.scores["reward_accuracy"].value == pytest.approx(won / ROWS)
    assert report.scores["reward_margin"].higher_is_better is None
    assert set(report.scores) == ALWAYS | DISTINCT | {"reward_margin", "reward_accuracy", "ipm"}
    # Nobody answered as a person did, so the two are one here.
    assert report.scores["ipm"] == report.scores["reward_margin"]


def test_a_player_that_is_its_opponent_has_no_margin(tmp_path, models, prompts, opponents_report):
    report = do(evaluate_job(tmp_path / "self-play", models[0], prompts, t=1, opponent=opponents_report))
    assert set(items(report)["reward_margin"].values()) == set(items(report)["ipm"].values()) == {0.0}
    assert report.scores["reward_accuracy"].value == 0.5


def test_the_probability_metric_is_the_players_gain_on_people_minus_its_gain_on_its_opponent():
    """By hand, where no model is needed: one of three prompts was answered as a person answered it."""

    class Known:
        def logps(self, _prompt_ids, _response_ids):
            return np.array([-6.0, -2.0, -9.0])

    columns = {
        "id": ["a", "b", "c"],
        "prompt_ids": [[1], [1], [1]],
        "real_ids": [[5], [6], [7]],
        "generated_ids": [[8], [6], [9]],
        "real_logps": [-3.0, -2.0, -4.0],
        "generated_logps": [-5.0, -3.0, -5.0],
    }
    opponent = pa.table(columns)
    player = pa.table({**columns, "real_logps": [-2.0, -2.0, -4.5]})
    reward_columns = rewards(Known(), player, opponent)
    # Gains on people 1, 0, -.5; on the opponent -1, 1, -4. The second pair is one and the same text.
    assert reward_columns["ipm"].tolist() == [2.0, 0.0, 3.5]
    assert mean(reward_columns["ipm"], "ipm").value == pytest.approx(5.5 / 3)
    assert mean(reward_columns["reward_margin"], "reward_margin").value == pytest.approx(5.5 / 2)


def test_the_two_sample_test_is_a_note_in_words(opponents_report):
    (note,) = opponents_report.notes
    score = opponents_report.scores["text_classifier"]
    assert f"in {score.value:.3f} ± {score.stderr:.3f} of cases" in note
    # The demo's answers are digits, and a random model writes any of 16 tokens.
    assert score.value > 0.5 + 2 * score.stderr
    assert float(note.rsplit(" ", 1)[1]) < 0.05
    assert not score.higher_is_better


def test_a_pair_with_the_same_tokens_counts_only_for_the_probability_metric(
    tmp_path, models, prompts, opponents_report
):
    rows = held_out(opponents_report)
    for row in rows[:20]:
        row["generated_ids"], row["generated_logps"] = row["real_ids"], row["real_logps"]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "held_out.parquet")
    same = opponents_report.model_copy(update={"path": tmp_path})
    report = do(evaluate_job(tmp_path / "self-play", models[1], prompts, t=1, opponent=same))
    assert report.scores["reward_margin"].n == report.scores["reward_accuracy"].n == ROWS - 20
    margins, differences = items(report)["reward_margin"], items(report)["ipm"]
    assert set(margins) == {row["id"] for row in rows[20:]}
    assert differences == {row["id"]: margins.get(row["id"], 0.0) for row in rows}
    assert report.scores["ipm"].value == pytest.approx(report.scores["reward_margin"].value * (ROWS - 20) / ROWS)


def test_a_report_about_other_prompts_is_rejected(tmp_path, models, opponents_report):
    other = prompt_set(tmp_path / "prompts", demo.prompts(2 * ROWS)[1][ROWS:])
    with pytest.raises(DataError, match="other held-out prompts"):
        do(evaluate_job(tmp_path / "self-play", models[1], other, t=1, opponent=opponents_report))


def test_the_same_job_gives_the_same_bytes(tmp_path, models, prompts, opponents_report):
    assert do(evaluate_job(tmp_path / "again", models[0], prompts)).digest == opponents_report.digest
    assert artifacts.verify(tmp_path / "again") == []


def test_lineages_share_the_report_on_their_first_model(tmp_path, models, prompts, opponents_report, monkeypatch):
    shared = {"speed": EvaluateSpeed(scores=tmp_path / "scores")}

    def job(name: str, **more) -> EvaluateJob:
        return evaluate_job(tmp_path / name / "self-play", models[0], prompts, **more).model_copy(update=shared)

    first = do(job("one"))
    monkeypatch.setattr("spin_core.evaluation.self_play.answer_prompts", lambda *_: pytest.fail("asked again"))
    second = do(job("two"))
    assert first.digest == second.digest == opponents_report.digest
    assert (first.scores, first.notes) == (second.scores, second.notes)
    assert artifacts.verify(second.path) == []
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        do(job("three", temperature=0.5))
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        do(job("four", t=1, opponent=opponents_report))


def test_every_version_samples_with_the_same_random_numbers(tmp_path, models, prompts, opponents_report):
    later = do(evaluate_job(tmp_path / "later", models[0], prompts, t=3))
    assert held_out(later) == held_out(opponents_report)


def test_the_exact_distance_is_that_at_the_sampling_temperature(tmp_path, models, prompts):
    report = do(evaluate_job(tmp_path / "self-play", models[0], prompts, exact=True, temperature=0.5))
    rows, tokenizer = held_out(report), demo.build_tokenizer()
    (want,) = exact_distances(
        load_model(models[0], CPU), tokenizer, demo.support, [row["prompt"] for row in rows],
        [row["prompt_ids"] for row in rows], end_id=2, temperatures=(0.5,), micro_batch_tokens=200,
    )  # fmt: skip
    assert set(report.scores) == ALWAYS | DISTINCT | EXACT
    for task in EXACT:
        assert list(items(report)[task].values()) == pytest.approx(want[task].tolist(), rel=1e-5)
        assert not report.scores[task].higher_is_better
    assert report.scores["total_variation"].value > 0.9


def test_either_half_of_the_suite_can_be_left_out(tmp_path, models, prompts):
    job = evaluate_job(tmp_path / "self-play", models[0], prompts, exact=True)
    report = do(job.model_copy(update={"config": EvaluateConfig(self_play=False, exact=True)}))
    assert set(report.scores) == set(items(report)) == EXACT


def test_an_unfinished_attempt_is_done_again(tmp_path, models, prompts, opponents_report):
    job = evaluate_job(tmp_path / "self-play", models[0], prompts)
    scratch = phase.workspace(job.output, identity.identity_of(job))
    (scratch / "held_out.parquet").write_bytes(b"half of it")
    assert do(job).digest == opponents_report.digest


def test_progress_counts_held_out_prompts(tmp_path, models, prompts, capfd):
    do(evaluate_job(tmp_path / "self-play", models[0], prompts))
    messages = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith('{"done"')]
    assert (messages[-1]["done"], messages[-1]["total"], messages[-1]["unit"]) == (ROWS, ROWS, "prompt")


def test_a_mean_leaves_out_items_without_a_value():
    score = mean(np.array([1.0, np.nan, 3.0, np.nan, 2.0]), "heldout_nll")
    assert (score.value, score.n, score.higher_is_better) == (2.0, 3, False)
    assert score.stderr == pytest.approx(1 / math.sqrt(3))
    assert mean(np.array([0.25]), "heldout_nll").stderr is None


def test_items_without_a_value_are_left_out(tmp_path):
    write_items(tmp_path / "items.parquet", ["a", "b"], {"x": np.array([1.0, np.nan]), "y": np.array([2.0, 3.0])})
    rows = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("x", "a", 1.0), ("y", "a", 2.0), ("y", "b", 3.0)]


def test_the_real_small_model_is_better_at_stories_than_a_guess(tmp_path):
    folder = data_folder("models", "babyllama-105")
    with data_folder("tinystories", "val.jsonl").open(encoding="utf-8") as file:
        stories = [json.loads(file.readline())["text"].replace("\n", " ") for _ in range(8)]
    from spin_core.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, CPU)
    ids = [tokenizer(story)["input_ids"] for story in stories]
    columns = {
        "id": [str(i) for i in range(8)],
        "prompt": [story[:60] for story in stories],
        "response": [story[60:160] for story in stories],
        "prompt_ids": pa.array([story[:61] for story in ids], pa.list_(pa.int32())),
        "response_ids": pa.array([story[61:161] for story in ids], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), tmp_path / "held_out.parquet")
    prompts = PromptSet(path=tmp_path, digest="0" * 64, source="stories", revision=None, rows=0, held_out=8, drops={})
    report = do(evaluate_job(tmp_path / "self-play", folder, prompts, max_new_tokens=300))
    assert report.scores["heldout_nll"].value < 0.5 * math.log(105)
    # The demo's answers are one word each; stories have pairs and triples of words.
    shares = [report.scores[f"distinct_{n}"] for n in (1, 2, 3)]
    assert 0.1 < shares[0].value < shares[1].value < shares[2].value <= 1
    assert shares[1].stderr > 0
    # The context of 256 tokens ends before 300 answers are written.
    assert report.scores["generated_tokens"].value <= 256 - 61
    assert report.scores["real_tokens"].value == 100
