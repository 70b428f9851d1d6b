"""Claims and shards on a file system without hard links: still only one worker gets each name."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.support.lineages.generation import EOS, generate_job, prompt_set, run_generation
from tests.support.processes.claimers import race, refuse, shards_in


@pytest.fixture
def no_links(monkeypatch):
    monkeypatch.setattr(os, "link", refuse)


def test_racing_processes_get_different_shards_and_later_ones_take_over_dead_claims(tmp_path):
    for turn in (0, 1):
        taken = race(tmp_path, 40, 2 - turn, links=False)
        assert sorted(number for numbers in taken for number in numbers) == list(range(40))
        assert {held for held, _ in shards_in(tmp_path, 40).claims().values()} == {turn}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS])
def test_refused_links_are_replaced_by_claims_on_names(tmp_path, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    shards = shards_in(tmp_path)
    with shards.claim([0]) as claim:
        assert (claim.number, shards.claim([0])) == (0, None)
        assert shards.publish(0, lambda path: path.write_text("first"))
        assert not shards.publish(0, lambda path: path.write_text("second"))
    assert shards.path(0).read_text() == "first"
    assert list(shards.folder.iterdir()) == []
    assert shards.claim([0]) is None


def test_another_error_of_a_link_is_raised(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        shards_in(tmp_path).publish(0, Path.touch)


@pytest.mark.usefixtures("no_links")
def test_of_many_workers_that_publish_one_shard_at_once_the_first_ones_stays(tmp_path):
    ready, first = threading.Barrier(8), []

    def publish(name):
        def write(path):
            path.write_text(name)
            ready.wait()

        if shards_in(tmp_path).publish(0, write):
            first.append(name)

    threads = [threading.Thread(target=publish, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first == [shards_in(tmp_path).path(0).read_text()]
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.usefixtures("no_links")
def test_a_worker_that_died_during_the_rename_does_not_block_others(tmp_path):
    shards = shards_in(tmp_path)
    dead = shards.claim([0], "name")
    dead.path.write_text(json.dumps({**json.loads(dead.path.read_text()), "start_time": "1"}))
    assert shards.publish(0, lambda path: path.write_text("done"))
    assert shards.path(0).read_text() == "done"


@pytest.mark.usefixtures("no_links")
def test_an_empty_claim_is_alive_at_first_and_then_goes_stale(tmp_path):
    shards = shards_in(tmp_path, stale_seconds=0.3)
    (tmp_path / "work" / "shard-00000.claim-0000").touch()
    assert shards.claim([0]) is None
    [(number, holder)] = shards.holders()
    assert (number, holder["items"]) == (0, 0)
    time.sleep(0.4)
    assert shards.claim([0]).path.name == "shard-00000.claim-0001"


def test_a_generation_without_links_is_the_same_to_the_bit(tmp_path, tiny_model, monkeypatch):
    prompts = prompt_set(tmp_path / "prompts", rows=12, stop_ids=(EOS,))
    linked = run_generation(generate_job(tmp_path / "linked", tiny_model, prompts))
    monkeypatch.setattr(os, "link", refuse)
    assert run_generation(generate_job(tmp_path / "plain", tiny_model, prompts)).digest == linked.digest
