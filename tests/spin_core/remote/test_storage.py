"""Stores: which are rejected before a run, and how their errors are reported."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from spin_core.errors import ConfigError, TryAgain
from spin_core.remote import storage
from tests.support.servers.object_store import NO_ACCOUNT


def test_simultaneous_checks_of_a_folder_leave_nothing_behind(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.check, [f"file://{tmp_path}/store"] * 64))
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [("gs://bucket/x", "driver that is not installed: .*gcsfs"), ("s4://bucket/x", "begin with s4://: use file")],
)
def test_a_store_without_a_driver_is_a_one_line_error(url, message):
    with pytest.raises(ConfigError, match=message):
        storage.check(url)


def test_s3_errors_of_a_store_are_one_line_that_says_how_to_fix_them(s3, monkeypatch):
    storage.check(s3.url)
    assert s3.fs.find(f"models/{s3.folder}") == []
    with pytest.raises(ConfigError, match=r"s3://nowhere/x: .*bucket does not exist: make the bucket"):
        storage.check("s3://nowhere/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match=r"cannot be reached \(Could not connect to the endpoint"):
        storage.check(s3.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in NO_ACCOUNT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"Unable to locate credentials: set .*\(AWS_ACCESS_KEY_ID"):
        storage.check(s3.url)


def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigError, TryAgain), match="file:///") as raised:
        storage.check(f"file://{tmp_path}/file/below")
    assert "\n" not in str(raised.value)
