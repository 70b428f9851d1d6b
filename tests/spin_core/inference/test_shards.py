"""Claims on shards and their races, and the publishing of shards. Racing workers are real processes."""

import json
import os
import time

from spin_core.inference.shards import Shards
from tests.support.processes.claimers import race, shards_in


def test_racing_processes_get_different_shards_and_a_later_one_takes_over_dead_claims(tmp_path):
    for turn in (0, 1):  # the claims of the first race are dead in the second
        taken = race(tmp_path, 40, 3 - turn)
        assert sorted(number for numbers in taken for number in numbers) == list(range(40))
        assert {held for held, _ in shards_in(tmp_path, 40).claims().values()} == {turn}


def test_a_claimed_shard_is_rejected_until_the_claim_is_released(tmp_path):
    first, second = shards_in(tmp_path), shards_in(tmp_path)
    with first.claim([1, 2]) as claim:
        assert claim.number == 1
        assert second.claim([1]) is None
        assert second.claim([1, 2]).number == 2
    assert second.claim([1]).number == 1


def test_a_claim_is_dead_when_its_process_id_belongs_to_another_process(tmp_path):
    shards = shards_in(tmp_path)
    claim = shards.claim([0])
    claim.path.write_text(json.dumps({**json.loads(claim.path.read_text()), "start_time": "1"}))
    assert shards.claim([0]).number == 0


def test_a_claim_from_another_machine_is_alive_as_long_as_it_changes(tmp_path):
    shards = shards_in(tmp_path, stale_seconds=0.4)
    claim = shards.claim([0])
    elsewhere = {**json.loads(claim.path.read_text()), "pid_scope": "another machine"}
    claim.path.write_text(json.dumps(elsewhere))
    for _ in range(4):
        assert shards.claim([0]) is None
        time.sleep(0.15)
        os.utime(claim.path)  # as its heartbeat does
    assert shards.claim([0]) is None
    time.sleep(0.5)
    assert shards.claim([0]).path != claim.path


def test_a_claim_is_rewritten_while_its_shard_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("spin_core.inference.shards.HEARTBEAT_SECONDS", 0.02)
    shards = shards_in(tmp_path)
    with shards.claim([0]) as claim:
        claim.set_progress(7, 93)
        deadline = time.monotonic() + 20
        while shards.holders()[0][1]["items"] == 0:
            assert time.monotonic() < deadline
        [(number, holder)] = shards.holders()
    assert (number, holder["items"], holder["tokens"], holder["pid"]) == (0, 7, 93, os.getpid())
    assert list(shards.folder.iterdir()) == []


def test_the_first_published_shard_stays(tmp_path):
    shards = shards_in(tmp_path)
    assert shards.publish(0, lambda path: path.write_text("first"))
    assert not shards.publish(0, lambda path: path.write_text("second"))
    assert shards.path(0).read_text() == "first"
    assert list(shards.folder.iterdir()) == []
    assert shards.missing() == [1, 2]


def test_a_shard_that_is_published_meanwhile_is_not_claimed(tmp_path):
    shards = shards_in(tmp_path)
    shards.publish(0, lambda path: path.write_text("done"))
    assert shards.claim([0]) is None
    assert shards.claims() == {}


def test_a_claim_of_another_version_counts_as_alive_until_it_is_stale(tmp_path):
    shards = Shards(tmp_path, tmp_path, count=1, stale_seconds=0.05)
    (tmp_path / "shard-00000.claim-0000").write_text('{"host": "old", "pid": 1}')
    assert shards.claim([0]) is None
    time.sleep(0.1)
    claim = shards.claim([0])
    assert claim is not None
    assert claim.path.name == "shard-00000.claim-0001"
