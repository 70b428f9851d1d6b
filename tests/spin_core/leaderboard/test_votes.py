"""Blind votes become a score of the version that they are about, with Wilson's interval."""

import shutil

import pytest

from spin_core.errors import DamagedArtifact
from spin_core.evaluation.mt_bench.verdicts import wilson_interval
from spin_core.leaderboard import board, votes
from spin_core.lineage.find import find_version
from spin_core.lineage.verify import verify
from spin_core.reports import html
from tests.support.lineages.small_lineage import build_lineage


@pytest.fixture
def lineage(tmp_path):
    return build_lineage(tmp_path / "runs")


def vote(lineage, number, value, against=0, t=2):
    one, other = find_version(lineage, t), find_version(lineage, against)
    votes.add_vote(
        lineage,
        votes.Vote(
            id=str(number),
            t=t,
            digest=one.digest,
            against=against,
            against_digest=other.digest,
            value=value,
            question="?",
        ),
    )


def test_votes_are_a_win_rate_on_the_leaderboard(lineage):
    for number, value in enumerate((1.0, 1.0, 0.5, 0.0)):
        vote(lineage, number, value)
    vote(lineage, 9, 0.0, against=1)
    report = votes.publish_votes(lineage, find_version(lineage, 2))
    assert report.notes[0] == "votes_against_0: won 2, tied 1 and lost 1 blind votes"
    row = board.leaderboard(lineage).rows[2]
    score = row.scores["votes_against_0"]
    assert (score.value, score.n, score.interval) == (0.625, 4, pytest.approx(wilson_interval(0.625, 4)))
    assert board.format_score(score) == "0.62 [0.22, 0.91]"
    assert row.scores["votes_against_1"].value == 0.0
    assert "votes_against_0" in board.leaderboard(lineage).headline(lineage.config)
    assert verify(lineage)[0] == []
    assert "votes against 0" in html.write(lineage, lineage.root / "page.html").read_text("utf-8")


def test_more_votes_replace_the_score(lineage):
    vote(lineage, 1, 1.0)
    votes.publish_votes(lineage, find_version(lineage, 2))
    vote(lineage, 2, 0.0)
    votes.publish_votes(lineage, find_version(lineage, 2))
    assert board.leaderboard(lineage).rows[2].scores["votes_against_0"].n == 2


def test_votes_on_other_weights_do_not_count(lineage):
    vote(lineage, 1, 1.0)
    version = find_version(lineage, 2).model_copy(update={"digest": "f" * 64})
    assert votes.publish_votes(lineage, version) is None
    assert not (lineage.eval_folder(2) / "votes").exists()


def test_a_damaged_file_of_votes_is_one_line(lineage):
    (lineage.root / "votes.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DamagedArtifact, match=r"votes\.jsonl has a line that is not a vote: "):
        votes.read_votes(lineage)
    (lineage.root / "votes.jsonl").write_text("no JSON\n")
    with pytest.raises(DamagedArtifact, match="is not a vote"):
        votes.read_votes(lineage)


def test_without_a_number_the_version_is_the_gates_choice(lineage):
    chosen = lineage.records()[-1].gate.next_opponent
    assert find_version(lineage).t == chosen
    assert [find_version(lineage, t).t for t in (0, 1, 2)] == [0, 1, 2]
    shutil.rmtree(lineage.iteration(1))
    assert find_version(lineage, 1).t == 1
