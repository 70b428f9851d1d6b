"""`spin chat`: questions from standard input, answers of real tiny models, commands, history and blind votes."""

import json
import random

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.leaderboard import board
from spin_core.store.lock import locked
from tests.support.lineages.talking import build_talking_lineage
from tests.support.processes.command_runner import refusal


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return build_talking_lineage(tmp_path_factory.mktemp("talking"))


@pytest.fixture
def chat(talking, monkeypatch):
    """`spin chat tale` with these lines as its input."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str, lines: str | bytes, status: int = 0):
        command = ["chat", "tale", *arguments, "--runs", str(talking.runs)]
        result = CliRunner().invoke(main, command, input=lines)
        assert result.exit_code == status, (result.output, result.exception)
        return result

    return run


def test_a_version_answers_and_obeys_commands(chat, tmp_path):
    history = tmp_path / "new" / "history.jsonl"
    lines = (
        "hello\n\n/temperature 0\nhello\n/reset\nhello\n/temperature hot\n/temperature\n/nothing\n/help\n/quit\nmore\n"
    )
    printed = chat("1", "--history", str(history), lines=lines).stdout
    assert "loading θ_1 of tale" in printed
    assert "temperature 0\n" in printed
    assert "temperature cannot be hot: give a number from 0 on" in printed
    assert "/nothing is not a command" in printed
    assert "/system TEXT" in printed
    rows = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
    assert [row["question"] for row in rows] == ["hello"] * 3
    assert [row["temperature"] for row in rows][1:] == [0.0, 0.0]
    assert rows[0]["answers"]["θ_1"] in printed


def test_the_conversation_is_kept_until_it_is_reset(chat, tmp_path):
    history = tmp_path / "history.jsonl"
    lines = "hello\nhello\n/reset\nhello\n/system be kind\nhello\n/system\nhello\n"
    chat("2", "--temperature", "0", "--history", str(history), lines=lines)
    rows = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
    first, second, after_reset, with_system, without = (row["answers"]["θ_2"] for row in rows)
    assert first == after_reset == without
    assert second != first
    assert with_system != first
    assert [row["system"] for row in rows] == ["", "", "", "be kind", ""]


def test_two_versions_answer_side_by_side(chat):
    printed = chat("2", "--versus", "0", lines="hello\n").stdout
    assert "loading θ_2 and θ_0" in printed
    (heading,) = [line for line in printed.splitlines() if "θ_2" in line and "θ_0" in line and "loading" not in line]
    assert heading.index("θ_2") < heading.index("θ_0")


def test_blind_votes_are_a_score_of_the_leaderboard(chat, talking, monkeypatch):
    monkeypatch.setattr(random, "shuffle", lambda order: order.reverse())
    printed = chat("2", "--blind", lines="hello\nx\na\nhello\nb\nhello\n=\nhello\ns\n").stdout
    before_the_vote, _, after = printed.partition("better:")
    assert "θ_2" not in before_the_vote.split("ends\n")[1]
    assert "A was θ_0 and B was θ_2; θ_2 won 0, tied 0, lost 1" in after
    assert "θ_2 won 1, tied 1, lost 1" in after
    assert "no vote; " in after
    assert "votes against 0: θ_2 0.50 [0.13, 0.87] of 3 votes" in printed
    row = board.leaderboard(talking).rows[2]
    assert row.scores["votes_against_0"].n == 3
    assert "votes_against_0" in (talking.root / "leaderboard.json").read_text("utf-8")
    with locked(talking.root):
        busy = chat("2", "--blind", "--versus", "1", lines="hello\na\n")
    assert "votes are kept, and become a score when the next ones do" in busy.stderr
    assert "votes_against_1" not in board.leaderboard(talking).rows[2].scores
    chat("2", "--blind", lines="hello\na\n")
    assert board.leaderboard(talking).rows[2].scores["votes_against_1"].n == 1


def test_votes_are_about_the_lineages_own_settings(chat):
    printed = chat("2", "--blind", lines="/temperature 0\n/system be kind\n/temperature\n").stdout
    assert printed.count("votes are about the lineage's own settings") == 2
    assert "temperature 0\n" not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["2", "--blind", "--temperature", "0"], "--blind compares versions with the lineage's own settings"),
        (["2", "--blind", "--system", "be kind"], "--blind compares versions with the lineage's own settings"),
        (["7"], "lineage tale has no θ_7: choose from 0 to 2"),
        (["1", "--versus", "1"], "both sides are θ_1: name another version with --versus"),
        (["0", "--blind"], "both sides are θ_0: name another version with --versus"),
        (["1", "--temperature", "-1"], "invalid value for '--temperature'"),
        (["1", "--temperature", "nan"], "--temperature cannot be nan: give a number from 0 on"),
        (["1", "--temperature", "inf"], "--temperature cannot be inf: give a number from 0 on"),
    ],
)
def test_versions_that_cannot_be_compared_are_refused_in_one_line(chat, arguments, says):
    assert refusal(chat(*arguments, lines="", status=2)).startswith(says)


def test_a_question_that_is_too_long_is_refused_in_its_own_words(chat):
    answered = chat("1", lines="x" * 5000 + "\n/temperature\n")
    assert "error  the question makes a prompt of" in answered.stderr
    assert "ask a shorter one" in answered.stderr
    assert "temperature " in answered.stdout  # the conversation goes on


def test_input_that_is_not_utf_8_is_answered(chat, tmp_path):
    history = tmp_path / "history.jsonl"
    chat("1", "--history", str(history), lines=b"caf\xe9\n")
    assert [json.loads(line)["question"] for line in history.read_text("utf-8").splitlines()] == ["caf\ufffd"]
