"""Shards on a file system that has no hard links: one worker at a time gets each name all the same."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from claimers import race, refuse
from generation import EOS, do, generate_job, prompt_set

from spin_core.inference.shards import Shards, place_once


@pytest.fixture
def folder(tmp_path):
    for name in ("final", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def some_shards(folder: Path, count=3, **settings) -> Shards:
    return Shards(folder / "final", folder / "work", count, **settings)


@pytest.fixture
def no_links(monkeypatch):
    monkeypatch.setattr(os, "link", refuse)


def test_processes_that_race_get_different_shards_and_the_next_take_over_what_the_dead_held(folder):
    for turn in (0, 1):
        found = race(folder, 40, 2 - turn, links=False)
        assert sorted(number for mine in found for number in mine) == list(range(40))
        assert {held for held, _ in some_shards(folder, 40).claims().values()} == {turn}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS])
def test_links_that_are_refused_are_done_without(folder, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    found = some_shards(folder)
    with found.claim([0]) as claim:
        assert (claim.number, found.claim([0])) == (0, None)
        assert found.publish(0, lambda path: path.write_text("first"))
        assert not found.publish(0, lambda path: path.write_text("second"))
    assert found.path(0).read_text() == "first"
    assert list(found.folder.iterdir()) == []
    assert found.claim([0]) is None


def test_another_error_is_none_of_that(folder, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        place_once(folder / "one", folder / "other")


@pytest.mark.usefixtures("no_links")
def test_of_many_that_publish_a_shard_at_once_one_is_first_and_his_stands(folder):
    ready, first = threading.Barrier(8), []

    def publish(name):
        def write(path):
            path.write_text(name)
            ready.wait()

        if some_shards(folder).publish(0, write):
            first.append(name)

    threads = [threading.Thread(target=publish, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first == [some_shards(folder).path(0).read_text()]
    assert list((folder / "work").iterdir()) == []


@pytest.mark.usefixtures("no_links")
def test_who_died_while_he_gave_a_shard_its_name_keeps_nobody_from_it(folder):
    found = some_shards(folder)
    dead = found.claim([0], "name")
    dead.path.write_text(json.dumps({**json.loads(dead.path.read_text()), "born": "1"}))
    assert found.publish(0, lambda path: path.write_text("done"))
    assert found.path(0).read_text() == "done"


@pytest.mark.usefixtures("no_links")
def test_a_claim_that_is_not_written_yet_holds_and_one_that_never_is_goes_stale(folder):
    found = some_shards(folder, stale=0.3)
    (folder / "work" / "shard-00000.claim-0000").touch()
    assert found.claim([0]) is None
    [(number, holder)] = found.holders()
    assert (number, holder["items"]) == (0, 0)
    time.sleep(0.4)
    assert found.claim([0]).path.name == "shard-00000.claim-0001"


def test_a_generation_without_links_is_the_same_to_the_bit(tmp_path, tiny_model, monkeypatch):
    prompts = prompt_set(tmp_path / "prompts", rows=12, stop_ids=(EOS,))
    linked = do(generate_job(tmp_path / "linked", tiny_model, prompts))
    monkeypatch.setattr(os, "link", refuse)
    assert do(generate_job(tmp_path / "plain", tiny_model, prompts)).digest == linked.digest
