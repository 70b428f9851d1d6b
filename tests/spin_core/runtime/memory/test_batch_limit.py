"""The size of a pass that `auto` stands for: guessed once, kept, and halved when memory runs out."""

import json
import logging

import pytest

from spin_core.runtime.memory import batch_limit
from spin_core.runtime.memory.batch_limit import LIMIT, open_limit
from spin_core.runtime.ranks import Ranks


@pytest.fixture
def kills(monkeypatch):
    """The kernel's count, which a test may raise."""
    count = [3]
    monkeypatch.setattr(batch_limit, "kills_by_kernel", lambda: count[0])
    return count


def opened(folder, guess=4096, setting="auto"):
    return open_limit(setting, folder, lambda: guess, "tokens in a pass")


def kept(folder):
    return json.loads((folder / LIMIT).read_text())


def test_a_users_number_stays_and_leaves_no_file(tmp_path):
    limit = opened(tmp_path, setting=100)
    with limit.attempt(Ranks()):
        assert not limit.halve()
    assert limit.size == 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("kills")
def test_the_size_is_guessed_once_for_all_attempts(tmp_path):
    with opened(tmp_path).attempt(Ranks()):
        assert kept(tmp_path) == {"sizes": [4096], "kills": 3}
    assert kept(tmp_path) == {"sizes": [4096], "kills": None}
    assert opened(tmp_path, guess=64).size == 4096


def test_it_is_halved_down_to_the_least_and_kept(tmp_path, caplog):
    limit = opened(tmp_path)
    with limit.attempt(Ranks()):
        assert limit.halve(least=1500)
        assert limit.halve(least=1500)
        assert not limit.halve(least=1500)
    assert limit.sizes == [4096, 2048, 1500]
    assert opened(tmp_path).sizes == [4096, 2048, 1500]
    assert "out of memory: continuing with 2048 tokens in a pass" in caplog.text


def test_an_attempt_that_the_kernel_killed_for_memory_is_followed_by_a_smaller_one(tmp_path, kills, caplog):
    attempt = opened(tmp_path).attempt(Ranks())
    attempt.__enter__()  # and never left, as when the process is killed
    caplog.set_level(logging.WARNING)
    assert opened(tmp_path).size == 4096, "killed by something else"
    kills[0] += 1
    assert opened(tmp_path).size == 2048
    assert "the kernel killed the last attempt for memory" in caplog.text


def test_a_kill_after_an_attempt_that_ended_by_itself_is_another_processs(tmp_path, kills):
    with pytest.raises(ValueError, match="its own"), opened(tmp_path).attempt(Ranks()):
        raise ValueError("its own")
    kills[0] += 1
    assert opened(tmp_path).size == 4096


def test_the_smaller_size_of_another_rank_is_kept(tmp_path):
    first = opened(tmp_path)
    with first.attempt(Ranks()):
        assert opened(tmp_path).halve()
    assert opened(tmp_path).size == 2048


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"'])
def test_a_damaged_file_is_like_none(tmp_path, text):
    (tmp_path / LIMIT).parent.mkdir()
    (tmp_path / LIMIT).write_text(text)
    assert opened(tmp_path).size == 4096
