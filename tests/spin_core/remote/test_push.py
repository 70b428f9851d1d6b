"""A lineage's copy in a store: pushed, interrupted, read back, and pulled. S3 is a real server, moto's."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.command_line.main import main
from spin_core.config.push import PushConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError, DamagedArtifact, StaleArtifact, TryAgain
from spin_core.lineage import phase_jobs
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.lineage.start import start_lineage
from spin_core.lineage.verify import verify
from spin_core.remote import push as pushes
from spin_core.remote import storage
from spin_core.remote.manifest import MANIFEST, TEXTS, files_of, local_path
from spin_core.remote.pull import pull
from spin_core.remote.push import push
from spin_core.remote.storage import Remote
from spin_core.store import artifacts, files, identity
from tests.support.lineages.small_lineage import NLLS, build_lineage
from tests.support.servers.object_store import NO_ACCOUNT, Bucket, serve

KILLED = """
import os, signal, sys
from pathlib import Path
from spin_core.config.push import PushConfig
from spin_core.lineage.find import find_lineage
from spin_core.remote import push
from spin_core.remote.storage import Remote

runs, url, after, real, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Remote.upload, 0

def upload(self, *given, **named):
    global count
    if count == after:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    real(self, *given, **named)

Remote.upload = upload
push.push(find_lineage(runs, "tale"), PushConfig(url=url))
"""
"""Pushes, and kills itself with SIGKILL after so many uploaded files."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a lineage `tale` and its shared θ_0."""
    runs = tmp_path_factory.mktemp("built")
    lineage = build_lineage(runs)
    files.write_text(lineage.root / "report.html", "<p>as it was</p>")
    return runs


@pytest.fixture
def lineage(built: Path, tmp_path: Path) -> Lineage:
    """A copy of that lineage, which a test may change."""
    shutil.copytree(built, tmp_path / "runs")
    return find_lineage(tmp_path / "runs", "tale")


@pytest.fixture
def short(tmp_path: Path) -> Lineage:
    """A lineage of one iteration, because S3 is slow."""
    return build_lineage(tmp_path / "runs", nlls=NLLS[:2])


@pytest.fixture
def away(tmp_path: Path) -> PushConfig:
    """The settings of a store that is a folder."""
    return PushConfig(url=f"file://{tmp_path}/away")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serve(tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.fixture
def s3(server: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """A folder of the test's own in the bucket. The environment has its credentials."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return replace(server, folder=tmp_path.name)


def contents(lineage: Lineage) -> dict[str, bytes]:
    """The bytes of all files of a copy, by path."""
    return {path: local_path(lineage.root, path).read_bytes() for path in files_of(lineage)}


def test_a_pulled_lineage_has_the_bytes_that_were_pushed_and_goes_on_there(lineage, tmp_path):
    url = f"memory://{tmp_path.name}"
    pushed = push(lineage, PushConfig(url=url))
    assert pushed.moved == pushed.files - 1 > 30, "the timings of both trainings are equal, and stored once"
    pulled = pull(tmp_path / "elsewhere", "tale", url)
    assert pulled.moved == pushed.files
    found = find_lineage(tmp_path / "elsewhere", "tale")
    assert contents(found) == contents(lineage)
    problems, folders = verify(found)
    assert not problems
    assert folders == len(found.published()) + 1
    assert found.records()[0].opponent.path.is_relative_to(tmp_path / "elsewhere" / ".sft")
    assert (phase_jobs.base_job(found).output / "model.safetensors").exists()
    assert start_lineage(found.runs, "tale", found.config).config == lineage.config


def test_the_copy_can_be_read_without_spin_at_the_paths_that_files_have_here(lineage, away, tmp_path):
    push(lineage, away)
    for path, content in contents(lineage).items():
        assert (tmp_path / "away" / "tale" / path).read_bytes() == content


def test_a_second_push_uploads_nothing_and_a_later_one_what_is_new(lineage, away, tmp_path):
    first = push(lineage, away)
    assert push(lineage, away) == pushes.Transfer(first.files, 0, 0)
    files.write_text(lineage.root / "report.html", "<p>and more</p>")
    later = push(lineage, away)
    assert (later.files, later.moved, later.bytes) == (first.files, 1, 15)
    assert (tmp_path / "away/tale/report.html").read_text() == "<p>and more</p>"
    kept = {path.name for path in (tmp_path / "away/tale" / TEXTS).iterdir()}
    assert kept == {file.sha256 for path, file in files_of(lineage).items() if file.at != path}


def test_an_interrupted_push_takes_nothing_from_who_reads_the_copy_of_before(lineage, away, tmp_path, monkeypatch):
    push(lineage, away)
    before = contents(lineage)
    files.write_text(lineage.root / "report.html", "<p>and more</p>")
    record = lineage.record(1)
    lineage.save_record(record.model_copy(update={"seconds": {}}))

    def killed(*_given) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Remote, "write", killed)  # the manifest, after everything else
    with pytest.raises(KeyboardInterrupt):
        push(lineage, away)
    pull(tmp_path / "elsewhere", "tale", away.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == before


def test_what_is_here_and_damaged_is_not_pushed(lineage, away):
    (lineage.iteration(1) / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(DamagedArtifact, match=r"iter_01/model/model.safetensors changed since it was published"):
        push(lineage, away)
    assert storage.connect(f"{away.url}/tale").read_json(MANIFEST) is None


def test_a_push_neither_replaces_another_lineage_nor_loses_what_only_the_copy_has(lineage, away, tmp_path):
    build_lineage(tmp_path / "other", nlls=((3.0, 3.1), (2.0, 2.1)))
    other = find_lineage(tmp_path / "other", "tale")
    push(lineage, away)
    with pytest.raises(ConfigError, match=r"away/tale (has another|also has) .* spin push --replace") as raised:
        push(other, away)
    assert "\n" not in str(raised.value)
    shutil.rmtree(lineage.iteration(1))
    with pytest.raises(ConfigError, match="also has iter_01/"):
        push(lineage, away)
    push(other, away, replace=True)
    pull(tmp_path / "elsewhere", "tale", away.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(other)


@pytest.mark.parametrize("kept", [0, 100], ids=["empty", "cut"])
def test_a_copy_whose_manifest_is_damaged_is_not_taken_for_none(lineage, away, tmp_path, kept):
    push(lineage, away)
    manifest = tmp_path / "away/tale" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:kept])
    build_lineage(tmp_path / "other", nlls=((3.0, 3.1), (2.0, 2.1)))
    for call in (
        lambda: push(find_lineage(tmp_path / "other", "tale"), away),
        lambda: push(lineage, away, again=True),
        lambda: pushes.check_copy(tmp_path / "elsewhere", "tale", away),
        lambda: pull(tmp_path / "elsewhere", "tale", away.url),
    ):
        with pytest.raises(DamagedArtifact, match=r"manifest.json is damaged .* spin push --replace; what") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert push(lineage, away, replace=True).moved == 0, "all of it is there and whole"
    pull(tmp_path / "elsewhere", "tale", away.url)
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(lineage)


def test_runs_that_begin_at_once_look_whether_a_folder_can_be_written_without_harm(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.check, [f"file://{tmp_path}/away"] * 64))
    assert list((tmp_path / "away").iterdir()) == []


def test_a_folder_built_again_in_another_time_is_no_other_lineage(lineage, away):
    push(lineage, away)
    log = lineage.iteration(0) / "train" / "log" / "timing.jsonl"
    log.write_text("{}\n")
    manifest = artifacts.read_manifest(log.parents[1])
    manifest["files"]["log/timing.jsonl"] = {"sha256": identity.digest_file(log), "bytes": 3}
    files.write_json(log.parents[1] / identity.MANIFEST, manifest)
    assert push(lineage, away).moved == 2


def test_a_lineage_is_not_begun_over_the_copy_of_one_that_is_not_here(lineage, away, tmp_path):
    pushes.check_copy(lineage.runs, "tale", PushConfig())
    pushes.check_copy(lineage.runs, "tale", away)
    push(lineage, away)
    pushes.check_copy(lineage.runs, "tale", away)
    with pytest.raises(ConfigError, match="bring it here with spin pull tale file://"):
        pushes.check_copy(tmp_path / "elsewhere", "tale", away)
    pushes.check_copy(tmp_path / "elsewhere", "another", away)


def test_a_pull_names_what_is_damaged_and_brings_the_rest_and_the_next_one_what_was_missing(lineage, away, tmp_path):
    push(lineage, away)
    weights, gone = (tmp_path / "away/tale" / f"iter_0{t}/model/model.safetensors" for t in range(2))
    whole = weights.read_bytes()
    weights.write_bytes(bytes(len(whole)))
    gone.unlink()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(DamagedArtifact, match=r"iter_00/model/.*\(nor do 1 more\).*spin push tale file://\S+ --again"):
        pull(elsewhere, "tale", away.url)
    with pytest.raises(ConfigError, match="there is no lineage"):
        find_lineage(elsewhere, "tale")
    assert not list(elsewhere.rglob("*.pulled"))
    assert push(lineage, away).moved == 0, "files that the manifest names are assumed to be there"
    assert push(lineage, away, again=True).moved == 2
    assert pull(elsewhere, "tale", away.url).moved == 3  # the two, and the configuration
    assert contents(find_lineage(elsewhere, "tale")) == contents(lineage)


def test_a_pull_overwrites_no_lineage_and_writes_nowhere_else(lineage, away, tmp_path):
    with pytest.raises(ConfigError, match="holds no lineage tale that was pushed"):
        pull(tmp_path / "elsewhere", "tale", away.url)
    push(lineage, away)
    with pytest.raises(ConfigError, match=r"is in .* already"):
        pull(lineage.runs, "tale", away.url)
    manifest = tmp_path / "away/tale" / MANIFEST
    values = json.loads(manifest.read_text())
    values["files"]["../../escaped"] = values["files"].pop("lineage.json")
    manifest.write_text(json.dumps(values))
    with pytest.raises(DamagedArtifact, match="outside of the lineage"):
        pull(tmp_path / "elsewhere", "tale", away.url)
    assert not (tmp_path / "escaped").exists()


def test_a_pull_next_to_another_theta_0_of_the_same_settings_is_rejected(lineage, away, tmp_path):
    push(lineage, away)
    shutil.copytree(lineage.runs / ".sft", tmp_path / "elsewhere" / ".sft")
    (weights,) = (tmp_path / "elsewhere" / ".sft").rglob("model/model.safetensors")
    weights.write_bytes(b"trained on another machine")
    with pytest.raises(ConfigError, match="differs from what the lineage started from"):
        pull(tmp_path / "elsewhere", "tale", away.url)


@pytest.mark.parametrize("url", ["s3://AKIA:hush@bucket/x", "sftp://me:hush@host/x", "https://host/x?token=hush", "x"])
def test_a_url_with_a_secret_is_rejected_and_not_repeated(url, lineage):
    with pytest.raises(ConfigError, match=r"push\.url must be like s3://") as raised:
        resolve("demo", sets=[f"push.url={url}"])
    done = CliRunner().invoke(main, ["push", "tale", url, "--runs", str(lineage.runs)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "hush" not in str(raised.value) + done.output


@pytest.mark.parametrize("url", ["s3://b/x", "abfs://box@account.dfs.core.windows.net/x", "file:///mnt/x", ""])
def test_urls_without_secrets_are_taken(url):
    assert PushConfig(url=url).url == url


@pytest.mark.parametrize(
    ("url", "message"), [("gs://bucket/x", "driver that is not installed: .*gcsfs"), ("s4://bucket/x", "not known: s4")]
)
def test_a_store_without_a_driver_is_one_line(url, message):
    with pytest.raises(ConfigError, match=message):
        storage.check(url)


def test_the_url_may_be_changed_on_a_lineage_that_is_there(lineage):
    changed = lineage.config.model_copy(update={"push": PushConfig(url="s3://bucket/x")})
    assert start_lineage(lineage.runs, "tale", changed).config.push.url == "s3://bucket/x"
    with pytest.raises(StaleArtifact):
        start_lineage(lineage.runs, "tale", lineage.config.model_copy(update={"seed": 7}))


def test_s3_a_push_killed_with_9_goes_on_with_what_is_missing_and_pull_gives_equal_bytes(short, s3, tmp_path):
    for after in (3, 9):
        command = [sys.executable, "-c", KILLED, str(short.runs), s3.url, str(after)]
        assert subprocess.run(command, check=False, timeout=100).returncode == -signal.SIGKILL
        assert f"tale/{MANIFEST}" not in s3.versions()
    assert len(s3.versions()) == 3 + 9
    stored = {f"tale/{file.at}" for file in files_of(short).values()}
    pushed = push(short, PushConfig(url=s3.url))
    assert pushed.moved == len(stored) - 3 - 9
    now = s3.versions()
    assert {now[path] for path in stored} == {1}, "no file was uploaded twice"
    push(short, PushConfig(url=s3.url))
    assert s3.versions() == now
    pulled = pull(tmp_path / "elsewhere", "tale", s3.url)
    assert pulled.files == pushed.files
    assert contents(find_lineage(tmp_path / "elsewhere", "tale")) == contents(short)


def test_s3_a_corrupted_object_is_found_and_repaired(short, s3, tmp_path):
    push(short, PushConfig(url=s3.url))
    path = f"models/{s3.folder}/tale/iter_00/model/model.safetensors"
    whole = s3.fs.cat_file(path)
    s3.fs.pipe_file(path, whole[::-1])
    with pytest.raises(DamagedArtifact, match=r"s3://\S+/tale/iter_00/model/model.safetensors does not have"):
        pull(tmp_path / "elsewhere", "tale", s3.url)
    done = CliRunner().invoke(main, ["push", "tale", s3.url, "--again", "--runs", str(short.runs)])
    assert done.exit_code == 0, done.output
    assert ", 1 of them (0 kB) uploaded now, and read back" in done.output
    assert s3.fs.cat_file(path) == whole


def test_s3_an_upload_that_arrives_changed_is_noticed(short, s3, monkeypatch):
    real = Remote.upload

    def change(self, source, path, *more) -> None:
        real(self, source, path, *more)
        if path.endswith("iter_00/model/model.safetensors"):
            self.fs.pipe_file(self.at(path), b"something")

    monkeypatch.setattr(Remote, "upload", change)
    with pytest.raises(TryAgain, match="did not arrive as it was sent"):
        push(short, PushConfig(url=s3.url))
    assert f"tale/{MANIFEST}" not in s3.versions()


def test_s3_what_is_wrong_with_a_store_is_one_line_that_says_how_to_fix_it(s3, monkeypatch):
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


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigError, TryAgain), match="file:///") as raised:
        storage.check(f"file://{tmp_path}/file/below")
    assert "\n" not in str(raised.value)
