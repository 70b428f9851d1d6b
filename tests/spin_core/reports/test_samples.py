"""Samples: what is read of a lineage, how it is chosen, and how a terminal shows it."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console

from flows.command_line.main import main
from flows.command_line.printing.samples import pages
from spin_core.errors import ConfigError
from spin_core.lineage.lineage import Lineage
from spin_core.reports import markdown, samples, samples_page
from tests.support.lineages.small_lineage import NLLS, build_lineage

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "and now?"},
]


def rewrite(path: Path, **columns: object) -> None:
    """Replace columns of a Parquet file, in its own types."""
    table = pq.read_table(path)
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def lineage(tmp_path_factory) -> Lineage:
    """A lineage in which one held-out prompt has several turns, and some answers are odd."""
    made = build_lineage(tmp_path_factory.mktemp("runs"))
    plain = [json.dumps([{"role": "user", "content": text}]) for text in ("a", "b", "c")]
    rewrite(made.iteration(0) / "prompts" / "held_out.parquet", messages=[json.dumps(TURNS), *plain])
    rewrite(
        made.eval_folder(1) / "self-play" / "held_out.parquet",
        generated=["late 0 0", " \n", "human", "round and round"],
        generated_ids=[[7], [0], [3, 0], [8, 9] * 30],
        finish_reason=["stop", "stop", "stop", "length"],
    )
    items = {"task": ["reward_margin"] * 2, "item": ["0", "2"], "value": [2.5, -1.0]}
    pq.write_table(pa.table(items), made.eval_folder(1) / "self-play" / "items.parquet")
    return made


@pytest.fixture(scope="module")
def held_out(lineage):
    return samples.read(lineage)


def test_a_sample_is_a_prompt_with_the_human_response_and_every_versions_answer(held_out):
    sample = held_out.sample(1)
    assert (sample.number, sample.id) == (2, "1")
    assert sample.turns == (samples.Turn("", "<b>bold</b> | *stars*\nand a new line"),)
    assert (sample.real.text, sample.real.tokens, sample.real.t) == ("human", 2, None)
    assert [answer.name for answer in sample.answers] == ["θ_0", "θ_1", "θ_2"]
    assert [answer.text for answer in sample.answers] == ["early 1", " \n", "late 1 1"]


def test_a_prompt_of_several_turns_keeps_them(held_out):
    assert [turn._asdict() for turn in held_out.sample(0).turns] == TURNS


def test_answers_are_marked(held_out):
    marks = [held_out.sample(place).answers[1].marks for place in range(4)]
    assert marks == [(), ("empty",), ("same",), ("cut", "looping")]


def test_a_held_out_answer_has_the_margin_of_the_player_that_was_trained_against_it(held_out):
    """θ_1 was measured against θ_0's answers."""
    assert [held_out.sample(place).answers[0].margin for place in range(4)] == [2.5, None, -1.0, None]
    assert {answer.margin for place in range(4) for answer in held_out.sample(place).answers[1:]} == {None}


def test_versions_end_at_the_requested_one(lineage):
    assert [version.name for version in samples.read(lineage, upto=1).versions] == ["θ_0", "θ_1"]


def test_training_prompts_have_one_answer_an_iteration(lineage):
    read = samples.read(lineage, "train")
    assert [version.name for version in read.versions] == ["θ_0", "θ_1"]
    assert [[answer.text for answer in read.sample(place).answers] for place in range(2)] == [["0", "1"], ["b", "b"]]
    assert read.sample(1).answers[0].tokens == 19


def test_a_training_answer_has_a_margin_where_the_next_iteration_scored_the_pair_again(tmp_path):
    made = build_lineage(tmp_path)
    first, second = made.iteration(0), made.iteration(1)
    carried = pq.read_table(first / "pairs" / "pairs.parquet")
    own = pq.read_table(second / "pairs" / "pairs.parquet")
    pq.write_table(pa.concat_tables([own, carried]), second / "pairs" / "pairs.parquet")
    before, after = {"real_logps": [-10.0], "generated_logps": [-4.0]}, {"real_logps": [0, -9.0]}
    pq.write_table(pa.table(before), first / "scores" / "logps.parquet")
    pq.write_table(pa.table({**after, "generated_logps": [0, -5.5]}), second / "scores" / "logps.parquet")
    answers = [samples.read(made, "train").sample(place).answers for place in range(2)]
    assert [prompt_answers[0].margin for prompt_answers in answers] == [pytest.approx((-9 + 10) - (-5.5 + 4)), None]
    assert [prompt_answers[1].margin for prompt_answers in answers] == [None, None]


def test_several_answers_of_several_opponents_are_distinguished(tmp_path):
    made = build_lineage(tmp_path)
    columns = {
        "id": ["0", "0", "1", "1"],
        "opponent": [1, 0, 1, 1],
        "response": ["a", "b", "c", "d"],
        "response_ids": [[4]] * 4,
        "finish_reason": ["stop"] * 4,
    }
    pq.write_table(pa.table(columns), made.iteration(1) / "generations" / "shard-00000.parquet")
    read = samples.read(made, "train")
    assert [version.name for version in read.versions] == ["θ_0", "iteration 1"]
    answers = [(answer.name, answer.text) for answer in read.sample(0).answers[1:]]
    assert answers == [("θ_1", "a"), ("θ_0 in iteration 1", "b")]


def test_text_is_found_in_prompts_and_responses_in_any_case(held_out):
    assert held_out.select(find="HELLO") == [0]
    assert held_out.select(find="round AND") == [3]
    assert held_out.select(find="human", limit=2) == [0, 1]


def test_samples_are_sorted_by_longest_answer_and_lowest_margin(held_out):
    assert held_out.select(sort="length", limit=1) == [3]
    assert held_out.select(sort="margin") == [2, 0, 1, 3]
    shuffled = held_out.select(sort="random")
    assert sorted(shuffled) == [0, 1, 2, 3]
    assert shuffled == held_out.select(sort="random")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "there is no lineage 'none' in "),
        (["tale", "3"], "lineage tale has no version 3 with answers to held-out prompts: choose from 0 to 2"),
        (
            ["tale", "2", "--train"],
            "lineage tale has no iteration 2 with answers to training prompts: choose from 0 to 1",
        ),
        (["tale", "--find", "xyz"], "no held-out prompt of lineage tale, and no response to one, contains 'xyz'"),
        (["tale", "--train", "--sort", "margin"], "no answer to a training prompt has a margin yet"),
        (
            ["tale", "--html", "/nowhere/x.html"],
            "/nowhere/x.html cannot be written, since the folder /nowhere does not exist",
        ),
    ],
)
def test_a_request_that_cannot_be_shown_fails_with_one_line(lineage, arguments, says):
    result = CliRunner().invoke(main, ["samples", *arguments, "--runs", str(lineage.runs)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert says in line


def test_a_lineage_without_generations_is_a_one_line_error(tmp_path):
    made = build_lineage(tmp_path, nlls=NLLS[:1])
    with pytest.raises(ConfigError, match=r"no training prompt of lineage tale is answered yet: .* with --held-out"):
        samples.read(made, "train")
    (made.eval_folder(0) / "self-play" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"no held-out prompt of lineage tale is answered yet: .* with --train"):
        samples.read(made)
    assert markdown.samples(made, upto=0) == []


def test_json_holds_all_of_a_sample(lineage, held_out):
    result = CliRunner().invoke(main, ["samples", "tale", "--json", "-n", "1", "--runs", str(lineage.runs)])
    (value,) = json.loads(result.stdout)
    assert value == json.loads(json.dumps(held_out.sample(0).as_json()))
    assert value["turns"] == TURNS
    assert value["answers"][0]["margin"] == 2.5


def printed(held_out, width: int, find: str = "", places=(0,)) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    return "".join(pages(held_out, places, find, console))


def test_responses_are_side_by_side_where_the_terminal_is_wide_enough(held_out):
    wide, narrow = printed(held_out, 160), printed(held_out, 30)
    assert any("human  2 tokens" in line and "late 1 0" not in line and "θ_2" in line for line in wide.splitlines())
    assert [line.split()[0] for line in narrow.splitlines() if line.startswith(("human", "θ"))][::2]
    assert not any("θ_0" in line and "θ_1" in line for line in narrow.splitlines())


def test_turns_marks_and_margins_are_printed(held_out):
    text = printed(held_out, 160, places=(0, 3))
    assert "system: Be brief." in text
    assert "assistant: Hello!" in text
    assert "margin +2.50" in text
    assert "60 tokens  cut  looping" in text


def test_control_characters_of_a_model_reach_no_terminal(tmp_path):
    made = build_lineage(tmp_path)
    hostile = "\x1b[2Jgone \x07 [red]markup[/] \x9b"
    rewrite(made.eval_folder(0) / "self-play" / "held_out.parquet", generated=[hostile] * 4)
    text = printed(samples.read(made), 160)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "␛[2Jgone ␇ [red]markup[/]" in text


def test_a_page_says_how_many_of_the_samples_it_shows(held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(samples_page, "MOST", 3)
    path = tmp_path / "page.html"
    assert "3 of 4 held-out prompts; --limit 4 takes all" in samples_page.write(path, held_out, range(4))
    assert "all 4 held-out prompts, " in samples_page.write(path, held_out, range(4), limit=4)
    assert json.loads(json.dumps(samples_page.data_of(held_out, range(2))))["samples"][0]["answers"][0]["margin"] == 2.5
