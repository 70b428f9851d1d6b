"""Real and generated responses on their way into training."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.config.data import PairsConfig
from spin_core.data.files.example_files import SCHEMA as PROMPTS
from spin_core.data.files.example_files import TOOLS
from spin_core.errors import DamagedArtifact, DataError
from spin_core.phases import pairs
from spin_core.runtime.phase import execute
from spin_core.runtime.progress import Progress
from spin_core.store.jobs import PairsJob
from spin_core.store.records import GenerationBatch, PairDataset, PromptSet

EOS = 2


def ids_of(text, finish="stop"):
    return [*(ord(letter) for letter in text), *([EOS] if finish == "stop" else [])]


def write_prompts(folder, rows, tools=()):
    """`rows`: prompt and real response; `tools`: the column of tools, if there is one."""
    folder.mkdir(exist_ok=True)
    table = [
        {
            "id": f"id-{prompt}",
            "prompt": prompt,
            "messages": json.dumps([{"role": "user", "content": prompt}]),
            "response": real,
            "prompt_ids": ids_of(prompt, "length"),
            "response_ids": ids_of(real),
            "finish_reason": "stop",
        }
        for prompt, real in rows
    ]
    written = pa.Table.from_pylist(table, PROMPTS)
    if tools:
        written = written.append_column(TOOLS, pa.array(tools, pa.string()))
    pq.write_table(written, folder / "train.parquet")
    return PromptSet(
        path=folder,
        digest="p" * 64,
        source="test",
        revision=None,
        rows=len(rows),
        held_out=0,
        drops={},
        stop_ids=(EOS,),
    )


def write_generations(folder, t, answers, shard_size=3, each=1):
    """`answers`: prompt and generated response, with a trailing … where it was cut; `each` of them to a prompt."""
    folder.mkdir(exist_ok=True)
    rows = []
    for prompt, text in answers:
        finish = "length" if text.endswith("…") else "stop"
        text = text.removesuffix("…")
        rows.append(
            {"id": f"id-{prompt}", "response": text, "response_ids": ids_of(text, finish), "finish_reason": finish}
        )
    texts, ids = ("id", "response", "finish_reason"), pa.list_(pa.int32())
    schema = pa.schema([*((name, pa.string()) for name in texts), ("response_ids", ids)])
    for number, first in enumerate(range(0, len(rows), shard_size)):
        table = pa.Table.from_pylist(rows[first : first + shard_size], schema)
        pq.write_table(table, folder / f"shard-{number:05d}.parquet")
    return GenerationBatch(
        path=folder,
        digest=str(t) * 64,
        t=t,
        opponent="m" * 64,
        rows=len(rows),
        answers=each,
        shards=1,
        tokens=1,
        finish_reasons={},
    )


class Built:
    def __init__(self, fields, table):
        self.fields, self.rows = fields, table.to_pylist()
        self.drops, self.mix = fields["drops"], fields["mix"]

    @property
    def triples(self):
        return [(row["prompt"], row["real"], row["generated"]) for row in self.rows]


def build(folder, real, generated, previous=None, t=0, initial=None, each=1, tools=(), **config):
    job = PairsJob(
        output=folder / "pairs",
        t=t,
        config=PairsConfig(**config),
        prompts=write_prompts(folder / "prompts", real, tools),
        generations=write_generations(folder / "now", t, generated, each=each),
        previous=None if previous is None else write_generations(folder / "before", t - 1, previous, each=each),
        initial=None if initial is None else write_generations(folder / "first", 0, initial),
    )
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    fields = pairs.run(job, scratch, Progress())
    return Built(fields, pq.read_table(scratch / "pairs.parquet"))


REAL = [(f"q{i}", f"answer {i}") for i in range(5)]
FAKE = [(f"q{i}", f"guess {i}") for i in range(5)]


def test_every_prompt_is_paired_with_its_own_generation(tmp_path):
    built = build(tmp_path, REAL, FAKE)
    assert built.triples == [(f"q{i}", f"answer {i}", f"guess {i}") for i in range(5)]
    assert (built.fields["rows_in"], built.fields["rows"], built.drops, built.mix) == (5, 5, {}, {"0": 5})


def test_a_pair_holds_both_sides_token_ids_and_finish_reasons(tmp_path):
    [row] = build(tmp_path, [("q", "yes")], [("q", "no…")]).rows
    assert row == {
        "id": "id-q",
        "t": 0,
        "prompt": "q",
        "messages": '[{"role": "user", "content": "q"}]',
        "real": "yes",
        "generated": "no",
        "prompt_ids": [113],
        "real_ids": [121, 101, 115, 2],
        "generated_ids": [110, 111],
        "real_finish": "stop",
        "generated_finish": "length",
    }


@pytest.mark.parametrize("initial", [None, FAKE])
def test_each_pair_has_the_tools_of_its_prompt(tmp_path, initial):
    tools = ["[1]", None, "[2]", None, "[3]"]
    built = build(tmp_path, REAL, FAKE[::-1], initial=initial, tools=tools)
    assert [row["tools"] for row in built.rows] == tools
    assert ("initial_ids" in built.rows[0]) == (initial is not None)


def test_pairs_have_the_order_of_the_prompts_for_any_order_of_generation(tmp_path):
    shuffled = random.Random(0).sample(FAKE, len(FAKE))
    assert shuffled != FAKE
    assert build(tmp_path, REAL, shuffled).triples == build(tmp_path, REAL, FAKE).triples


def test_a_prompt_with_two_real_responses_gets_both_its_generations(tmp_path):
    real = [("q", "yes"), ("other", "well"), ("q", "aye")]
    built = build(tmp_path, real, [("q", "no"), ("q", "nay"), ("other", "hm")])
    assert built.triples == [("q", "yes", "no"), ("other", "well", "hm"), ("q", "aye", "nay")]


def test_the_previous_iterations_pairs_follow_under_their_own_t(tmp_path):
    before = [(f"q{i}", f"earlier {i}") for i in range(5)]
    built = build(tmp_path, REAL, FAKE, before, t=3)
    assert [row["t"] for row in built.rows] == [3] * 5 + [2] * 5
    assert [row["generated"] for row in built.rows[5:]] == [f"earlier {i}" for i in range(5)]
    assert built.mix == {"2": 5, "3": 5}
    assert built.fields["rows_in"] == 10


def test_every_pair_gets_its_prompts_answer_by_the_initial_policy(tmp_path):
    real = [("q", "yes"), ("other", "well"), ("q", "aye")]
    answers = [("q", "no"), ("other", "hm"), ("q", "nay")]
    before = [("other", "eh"), ("q", "never"), ("q", "naught")]
    built = build(tmp_path, real, answers, before, t=2, initial=[("q", "a"), ("q", "b"), ("other", "c")])
    assert [row["initial_ids"] for row in built.rows] == [ids_of(text) for text in ("a", "c", "b")] * 2
    assert "initial_ids" not in build(tmp_path, real, answers).rows[0]


def test_a_pair_whose_prompt_the_initial_policy_left_unanswered_is_dropped_and_counted(tmp_path):
    built = build(tmp_path, REAL, FAKE, [*FAKE[:4], ("q4", "else")], t=1, initial=[*FAKE[:3], ("q3", "…")])
    assert built.drops == {"duplicate": 3, "no-initial": 4}
    assert [row["prompt"] for row in built.rows] == ["q0", "q1", "q2"]
    unused = tmp_path / "again"
    unused.mkdir()
    with pytest.raises(DataError, match=r"no pair is left \(5 of 5 dropped as no-initial\): θ_0 gave"):
        build(unused, REAL, FAKE, t=1, initial=[])


SEVERAL = [("q", "no"), ("q", ""), ("q", "a long one"), ("other", ""), ("other", "well"), ("other", "oh well")]
TWO = [("q", "yes"), ("other", "well")]


def test_each_of_several_answers_makes_a_pair(tmp_path):
    built = build(tmp_path, TWO, SEVERAL, each=3, answers="all")
    assert built.triples == [("q", "yes", "no"), ("q", "yes", "a long one"), ("other", "well", "oh well")]
    assert (built.fields["rows_in"], built.drops) == (6, {"empty": 2, "identical": 1})


@pytest.mark.parametrize(
    ("rule", "chosen", "drops"),
    [
        ("first", ["no", "oh well"], {"empty": 1, "identical": 1, "spare": 2}),
        ("nearest-length", ["no", "oh well"], {"identical": 1, "spare": 3}),
    ],
)
def test_one_of_several_answers_is_chosen_among_those_that_the_filters_keep(tmp_path, rule, chosen, drops):
    built = build(tmp_path, TWO, SEVERAL, each=3, answers=rule)
    assert [row["generated"] for row in built.rows] == chosen
    assert built.drops == drops
    assert built.fields["rows"] + sum(built.drops.values()) == built.fields["rows_in"]


def test_the_nearest_in_length_is_counted_in_tokens_and_the_first_of_equals_taken(tmp_path):
    real = [("q", "12345"), ("other", "12345")]
    answers = [("q", "a"), ("q", "abcdefg"), ("q", "abc"), ("other", "abcdefghijk"), ("other", "ab"), ("other", "cd")]
    built = build(tmp_path, real, answers, each=3, answers="nearest-length")
    assert [row["generated"] for row in built.rows] == ["abcdefg", "ab"]


def test_an_unused_answer_does_not_make_a_carried_over_one_a_duplicate(tmp_path):
    before = [("q", "aye"), ("q", "no"), ("other", "hm"), ("other", "eh")]
    now = [("q", "no"), ("q", "aye"), ("other", "ah"), ("other", "hm")]
    built = build(tmp_path, TWO, now, before, t=1, each=2, answers="first")
    assert [(row["t"], row["generated"]) for row in built.rows] == [(1, "no"), (1, "ah"), (0, "aye"), (0, "hm")]
    assert (built.drops, built.mix) == ({"spare": 4}, {"0": 2, "1": 2})


def test_the_initial_policys_answers_are_given_in_turn_to_several(tmp_path):
    answers = [("q", "no"), ("q", "nay"), ("other", "hm"), ("other", "eh")]
    built = build(tmp_path, TWO, answers, t=2, each=2, initial=[("q", "a"), ("other", "b")])
    assert [row["initial_ids"] for row in built.rows] == [ids_of(text) for text in ("a", "a", "b", "b")]


HYGIENE = {
    "empty": ("answer", " \n"),
    "looping": ("answer", "over and over " * 6),
    "identical": ("answer", "answer"),
    "cut": ("answer", "unfinished…"),
}


@pytest.mark.parametrize("reason", sorted(HYGIENE))
def test_a_faulty_pair_is_dropped_and_counted_or_kept_as_configured(tmp_path, reason):
    real, generated = HYGIENE[reason]
    rows, answers = [("q", real), ("good", "yes")], [("q", generated), ("good", "no")]
    built = build(tmp_path, rows, answers, **{f"drop_{reason}": True})
    assert built.drops == {reason: 1}
    assert built.triples == [("good", "yes", "no")]
    assert len(build(tmp_path, rows, answers, **{f"drop_{reason}": False}).rows) == 2


def test_an_empty_real_response_is_dropped_too(tmp_path):
    assert build(tmp_path, [("q", ""), *REAL], [("q", "no"), *FAKE]).drops == {"empty": 1}


def test_a_pair_that_comes_again_is_dropped_also_when_carried_over(tmp_path):
    built = build(tmp_path, [("q", "yes"), ("q", "yes")], [("q", "no"), ("q", "no")])
    assert built.drops == {"duplicate": 1}
    before = [*FAKE[:3], ("q3", "else"), ("q4", "else")]
    built = build(tmp_path, REAL, FAKE, before, t=1)
    assert built.drops == {"duplicate": 3}
    assert built.mix == {"0": 2, "1": 5}
    assert len(build(tmp_path, REAL, FAKE, before, t=1, drop_duplicates=False).rows) == 10


def test_carried_over_pairs_go_through_the_same_filters(tmp_path):
    before = [("q0", "answer 0"), ("q1", " "), *FAKE[2:4], ("q4", "else")]
    built = build(tmp_path, REAL, FAKE, before, t=1)
    assert built.drops == {"duplicate": 2, "empty": 1, "identical": 1}
    assert built.fields["rows"] + sum(built.drops.values()) == built.fields["rows_in"]


def test_the_first_reason_that_applies_is_the_one_counted(tmp_path):
    built = build(tmp_path, [("q", ""), *REAL], [("q", ""), *FAKE])
    assert built.drops == {"empty": 1}


def test_the_error_for_no_remaining_pair_has_the_commonest_reason_and_its_fix(tmp_path):
    same = [(prompt, real) for prompt, real in REAL[:4]]
    with pytest.raises(DataError, match=r"no pair is left \(4 of 5 dropped as identical\): raise generate.temperature"):
        build(tmp_path, REAL, [*same, ("q4", "")])


@pytest.mark.parametrize("answers", [FAKE[:4], [*FAKE, ("q0", "more")], [*FAKE[:4], ("who", "me")], []])
def test_generations_for_other_prompts_are_rejected(tmp_path, answers):
    with pytest.raises(DamagedArtifact, match="of them to the 5 training prompts: remove it to generate again"):
        build(tmp_path, REAL, answers)


def test_the_same_job_gives_the_same_digest(tmp_path):
    digests = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        job = PairsJob(
            output=folder / "pairs",
            t=0,
            config=PairsConfig(),
            prompts=write_prompts(folder / "prompts", REAL),
            generations=write_generations(folder / "now", 0, FAKE),
            previous=None,
        )
        record = execute(job, PairDataset, pairs.run, Progress())
        assert (record.rows, record.path) == (5, Path(folder / "pairs"))
        digests.append(record.digest)
    assert digests[0] == digests[1]
