"""The score phase, on a tiny real model."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from spin_core.config.train import SpeedConfig
from spin_core.data.files.token_file import TokenFile
from spin_core.data.sequences import read_token_ids
from spin_core.errors import Stopped
from spin_core.models.loading import load_model
from spin_core.models.logps import sequence_logps
from spin_core.phases import score
from spin_core.runtime import progress as runtime_progress
from spin_core.runtime.launch import run_phase
from spin_core.store import artifacts, identity
from spin_core.store.records import ScoredPairs
from tests.support.helpers import character_tokenizer, save_tiny_model
from tests.support.lineages.small_jobs import (
    CPU,
    random_pairs,
    random_train_job,
    run_job,
    score_job,
    token_ids,
    version_of,
    write_pairs,
)
from tests.support.processes.many_jobs import StopsAt, do_on_ranks


def read(record) -> np.ndarray:
    table = pq.read_table(record.path / "logps.parquet")
    assert table.column_names == ["real_logps", "generated_logps"]
    return np.stack([column.to_numpy() for column in table.columns])


def test_scores_are_the_models_log_probabilities_in_the_pairs_order(tmp_path, tiny_model):
    opponent, pairs = version_of(tiny_model, t=1), random_pairs(tmp_path / "pairs")
    record = run_job(score_job(tmp_path / "scores", opponent, pairs))
    prompts, real, generated = read_token_ids(pairs.path / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    model = load_model(tiny_model, CPU)
    want = torch.stack([sequence_logps(model, prompts, side, 1) for side in (real, generated)])
    logps = read(record)
    assert logps.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(logps), want, rtol=1e-5, atol=1e-4)
    assert (record.pairs, record.opponent) == (pairs.digest, opponent.digest)
    assert artifacts.verify(record.path) == []


def tokens_of(folder, *columns) -> TokenFile:
    pairs = write_pairs(folder / "pairs", *([np.array(ids, np.int32) for ids in column] for column in columns))
    return TokenFile.write(folder / "tokens", pairs.path / "pairs.parquet", "prompt_ids", *score.SIDES)


def test_a_real_response_in_two_pairs_is_scored_once(tmp_path):
    tokens = tokens_of(tmp_path, [[5, 6], [5, 6]], [[7], [7]], [[8, 9], [6, 7]])
    index, first = score.distinct(tokens)
    assert index.tolist() == [0, 1, 0, 2]
    assert first.tolist() == [0, 1, 3]


def test_the_border_of_prompt_and_response_counts(tmp_path):
    index, first = score.distinct(tokens_of(tmp_path, [[5, 6], [5]], [[7], [6, 7]], [[8], [8]]))
    assert index.tolist() == [0, 1, 2, 3]
    assert first.tolist() == [0, 1, 2, 3]


def test_the_same_job_gives_the_same_bytes(tmp_path, tiny_model):
    opponent, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs")
    first, second = (run_job(score_job(tmp_path / name, opponent, pairs)) for name in ("one", "other"))
    assert first.digest == second.digest


def test_a_stopped_scoring_resumes_to_the_same_end(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(score, "BLOCK", 10)
    opponent, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs")
    whole = run_job(score_job(tmp_path / "whole", opponent, pairs))
    job, progress = score_job(tmp_path / "stopped", opponent, pairs), runtime_progress.Progress()
    progress.stop()
    with pytest.raises(Stopped):
        run_job(job, progress)
    (block,) = (tmp_path / ".stopped.partial" / "blocks").iterdir()
    kept = block.stat().st_mtime_ns, np.load(block)
    assert len(kept[1]) == 10
    np.save(block, kept[1] + 1)  # so that it shows whether the block was read or made again
    marked = read(run_job(job))
    assert (marked - read(whole)).max() == pytest.approx(1, abs=1e-4)
    assert ((marked - read(whole)).round() == 1).sum() == 10
    assert sorted(path.name for path in job.output.iterdir()) == ["logps.parquet", "manifest.json"]


@pytest.mark.parametrize("off", ["packing", "prefix_sharing", "response_logits"])
def test_scores_are_the_same_with_each_speed_setting_off(tmp_path, tiny_model, off):
    opponent, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs")
    fast, slow = (
        score_job(tmp_path / str(on), opponent, pairs, speed=SpeedConfig(**{off: on})) for on in (True, False)
    )
    assert identity.identity_of(fast) == identity.identity_of(slow)
    np.testing.assert_allclose(read(run_job(fast)), read(run_job(slow)), rtol=1e-5, atol=1e-4)


def test_pairs_are_scored_under_the_initial_policy_too_if_the_job_names_it(tmp_path, tiny_model):
    opponent, pairs = version_of(tiny_model, t=1), random_pairs(tmp_path / "pairs")
    base = version_of(save_tiny_model(tmp_path / "base", character_tokenizer(), seed=1))
    plain = run_job(score_job(tmp_path / "plain", opponent, pairs))
    both = run_job(score_job(tmp_path / "both", opponent, pairs, base=base))
    table = pq.read_table(both.path / "logps.parquet")
    assert table.column_names == ["real_logps", "generated_logps", "real_base_logps", "generated_base_logps"]
    assert table.select([0, 1]).equals(pq.read_table(plain.path / "logps.parquet"))
    own = run_job(score_job(tmp_path / "own", base.model_copy(update={"t": 1}), pairs))
    assert [column.to_pylist() for column in table.columns[2:]] == read(own).tolist()


def test_an_opponent_that_is_the_initial_policy_is_scored_once(tmp_path, tiny_model):
    opponent, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs")
    progress = runtime_progress.Progress(out=io.StringIO())
    record = run_job(score_job(tmp_path / "scores", opponent, pairs, base=opponent), progress)
    table = pq.read_table(record.path / "logps.parquet")
    assert table["real_logps"].equals(table["real_base_logps"])
    assert progress.total == 2 * pairs.rows


def test_no_pairs_give_no_scores(tmp_path, tiny_model):
    pairs = write_pairs(tmp_path / "pairs", [], [], [])
    assert read(run_job(score_job(tmp_path / "scores", version_of(tiny_model), pairs))).shape == (2, 0)


def test_an_empty_response_has_log_probability_zero(tmp_path, tiny_model):
    prompts, real = token_ids(np.random.default_rng(0), 2, 1, 4), [[5, 6], [7]]
    pairs = write_pairs(tmp_path / "pairs", prompts, real, [[], [8]])
    logps = read(run_job(score_job(tmp_path / "scores", version_of(tiny_model), pairs)))
    assert logps[1, 0] == 0
    assert (logps[0] < 0).all()


# On ranks.

TWO = SpeedConfig(ranks=2)


def test_scoring_takes_this_nodes_ranks_without_deepspeed(tmp_path, tiny_model):
    job = random_train_job(tmp_path, tiny_model)
    scoring = score_job(tmp_path / "scores", job.start, job.pairs)
    for alone in (SpeedConfig(), SpeedConfig(deepspeed="zero1"), SpeedConfig(nodes=2, rendezvous="host:1")):
        assert scoring.model_copy(update={"speed": alone}).rank_settings is None
    speed = SpeedConfig(ranks=8, nodes=2, rendezvous="host:1", deepspeed="zero3", packing=False)
    started = scoring.model_copy(update={"speed": speed}).rank_settings
    assert started == SpeedConfig(ranks=8, packing=False)


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one_device(tmp_path, tiny_model):
    opponent, pairs, many = (
        version_of(tiny_model, t=1),
        random_pairs(tmp_path / "p"),
        random_pairs(tmp_path / "m", 1100),
    )
    base = version_of(save_tiny_model(tmp_path / "base", character_tokenizer(), seed=1))
    single = write_pairs(tmp_path / "single", [[5, 6]], [[7, 8]], [[9]])
    cases = {
        "packed": (pairs, {}),
        "padded": (pairs, {"packing": False}),
        "whole prompts": (pairs, {"prefix_sharing": False}),
        "anchored": (pairs, {"base": base}),
        "one pair": (single, {}),
        "many": (many, {}),
        "none": (write_pairs(tmp_path / "none", [], [], []), {}),
    }

    def job(name, ranks, folder=None):
        of, settings = cases[name]
        given = dict(settings)
        fields = {"base": given.pop("base")} if "base" in given else {}
        return score_job(
            tmp_path / (folder or f"{name} on {ranks}"), opponent, of, speed=SpeedConfig(ranks=ranks, **given), **fields
        )

    stopped = job("many", 2, "stopped")
    with pytest.raises(Stopped):
        run_job(job("many", 1, "taken over"), StopsAt(score.BLOCK + 1))
    do_on_ranks(
        tmp_path / "torchrun", 2,
        [(job(name, 2), None) for name in cases]
        + [(job("many", 2, "again"), None), (job("many", 2, "taken over"), None), (stopped, 2 * score.BLOCK + 1)],
    )  # fmt: skip
    for name in cases:
        alone, on_two = run_job(job(name, 1)), artifacts.read_record(tmp_path / f"{name} on 2", ScoredPairs)
        assert (on_two.pairs, on_two.opponent) == (alone.pairs, alone.opponent)
        tables = [pq.read_table(record.path / "logps.parquet").to_pandas() for record in (alone, on_two)]
        assert list(tables[0]) == list(tables[1])
        np.testing.assert_allclose(*(table.to_numpy() for table in tables), rtol=1e-5, atol=1e-5)
    assert (
        artifacts.read_record(tmp_path / "again", ScoredPairs).digest
        == artifacts.read_record(tmp_path / "many on 2", ScoredPairs).digest
    )
    (block,) = (tmp_path / ".stopped.partial" / "blocks").iterdir()
    assert len(np.load(block)) == 2 * score.BLOCK
    np.save(block, np.load(block) + 1)  # so that it shows that it is read
    whole, marked = read(run_job(job("many", 1))), read(run_job(stopped))
    assert ((marked - whole).round() == 1).sum() == 2 * score.BLOCK
    np.testing.assert_allclose(
        read(artifacts.read_record(tmp_path / "taken over", ScoredPairs)), whole, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_a_scoring_of_two_ranks_is_started_published_once_and_counted_for_two_devices(tmp_path, tiny_model):
    opponent, pairs = version_of(tiny_model), random_pairs(tmp_path / "pairs")
    messages = []
    record = run_phase(score_job(tmp_path / "scores", opponent, pairs, speed=TWO), ScoredPairs, messages.append)
    assert [(message["done"], message["total"]) for message in messages] == [(48, 48)]
    assert artifacts.read_record(tmp_path / "scores", ScoredPairs) == record
    usage = artifacts.read_manifest(record.path)["usage"]
    assert usage["devices"] == 2
    assert "deepspeed" not in usage["environment"]
    alone = run_job(score_job(tmp_path / "one", opponent, pairs))
    np.testing.assert_allclose(read(record), read(alone), rtol=1e-5, atol=1e-5)
