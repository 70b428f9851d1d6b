"""Bad input and damaged files: one line that says what is wrong, where, and how to fix it. Never a traceback.

Each row of the tables is a command, the damage done before it, its exit status, and the line, as a pattern. In commands
and patterns, @ is the folder that holds the runs folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_core.config.resolve import resolve
from spin_core.config.yaml_text import MAX_DEPTH, MAX_VALUES
from tests.support.processes.command_runner import run_spin

Damage = Callable[[Path], object]


def replace_by_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()


def manifest_with(**changes: Any) -> Damage:
    """Damage that changes top-level values of the manifest of a training."""

    def damage(root: Path) -> None:
        path = root / "iter_00" / "train" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def text_in(name: str, text: str | bytes) -> Damage:
    """Damage that replaces a file's content."""
    return lambda root: (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def folder_in(name: str) -> Damage:
    """Damage that puts a folder in the place of a file."""
    return lambda root: replace_by_folder(root / name)


def without(*names: str) -> Damage:
    """Damage that removes files or folders."""
    return lambda root: [
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink() for name in names
    ]


def nothing(_root: Path) -> None:
    """No damage."""


NESTED = "[" * 100_000

MANIFEST, RECORD = "iter_00/train/manifest.json", "iter_00/record.json"

REWRITE = "start the lineage's spin run again, which writes it again from what is published"

TABLE: list[tuple[str, Damage, int, str]] = [
    # Manifests.
    ("verify tale", manifest_with(files=[]), 1, rf"damaged  .*/{MANIFEST} is not a manifest \(files: .*\): remove .*"),
    ("verify tale", manifest_with(files=3), 1, r"damaged  .* is not a manifest \(files: .*"),
    ("verify tale", manifest_with(files={"a": 1}), 1, r"damaged  .* is not a manifest \(files\.a: .*"),
    ("verify tale", manifest_with(files={"a": {}}), 1, r"damaged  .* is not a manifest \(files\.a\.sha256: .*"),
    ("verify tale", manifest_with(files={"a": {"sha256": 1}}), 1, r"damaged  .* \(files\.a\.sha256: .*"),
    ("verify tale", manifest_with(identity=3), 1, r"damaged  .* is not a manifest \(identity: .*"),
    ("verify tale", manifest_with(identity=[]), 1, r"damaged  .* is not a manifest \(identity: .*"),
    ("verify tale", manifest_with(usage=None), 1, r"damaged  .* is not a manifest \(usage: .*"),
    ("verify tale", manifest_with(record=1), 1, r"damaged  .* is not a manifest \(record: .*"),
    ("verify tale", manifest_with(record={"kind": "model"}), 1, r"damaged  .* has no readable record: remove .*"),
    ("verify tale", text_in(MANIFEST, "[]"), 1, r"damaged  .* is not a manifest \(all of it: .*"),
    ("verify tale", text_in(MANIFEST, NESTED), 1, r"damaged  .* cannot be read \(nested too deeply\): remove .*"),
    ("verify tale", text_in(MANIFEST, b"\xff\xfe"), 1, r"damaged  .* cannot be read \('utf-8' codec .*"),
    ("verify tale", folder_in(MANIFEST), 1, r"damaged  .* cannot be read \(Is a directory\): remove .*"),
    # The lineage's lock and its configuration.
    (
        "run demo --lineage tale",
        folder_in(".lock"),
        2,
        r"error  .*/tale/\.lock cannot be written, because a folder is .*",
    ),
    (
        "next tale",
        folder_in(".lock"),
        2,
        r"error  .*/tale/\.lock cannot be written, because a folder is in the way: .*",
    ),
    *(
        (command, damage, 2, rf"error  @/runs/tale/lineage\.json is damaged \({reason}\): restore it, or remove .*")
        for command in ("run demo --lineage tale", "next tale", "verify tale", "show tale", "leaderboard tale")
        for damage, reason in (
            (folder_in("lineage.json"), "Is a directory"),
            (text_in("lineage.json", NESTED), "nested too deeply"),
            (text_in("lineage.json", "{"), "Expecting property name .*"),
        )
    ),
    *(
        ("leaderboard", damage, 2, r"(tale  cannot be read: .*\n)error  no lineage in @/runs can be read: restore .*")
        for damage in (folder_in("lineage.json"), text_in("lineage.json", "{"), text_in("lineage.json", "[]"))
    ),
    # Records of iterations.
    ("verify tale", without(RECORD), 1, rf"damaged  @/runs/tale/{RECORD}: missing, though .* finished: {REWRITE}"),
    ("show tale", without(RECORD), 2, rf"error  @/runs/tale/{RECORD} is missing, though .* finished: {REWRITE}"),
    ("show tale 0", without(RECORD), 2, rf"error  @/runs/tale/{RECORD} is missing, though .* finished: {REWRITE}"),
    ("show tale 0", folder_in(RECORD), 2, rf"error  @/runs/tale/{RECORD} is damaged \(Is a directory\): remove .*"),
    ("show tale 0", text_in(RECORD, NESTED), 2, rf"error  @/runs/tale/{RECORD} is damaged \(nested too deeply\): .*"),
    # Samples.
    (
        "samples tale --train",
        without("iter_00/generations", "iter_01/generations"),
        2,
        "error  @/runs/tale/iter_00/generations is gone, though iteration 0 is finished: restore it .* again",
    ),
    (
        "samples tale",
        without("iter_00/prompts/held_out.parquet"),
        2,
        r"error  @/runs/tale/iter_00/prompts/held_out\.parquet is missing: restore it .* and run .* again.*",
    ),
    (
        "samples tale",
        text_in("iter_00/prompts/held_out.parquet", "no table"),
        2,
        r"error  @/runs/tale/iter_00/prompts/held_out\.parquet is damaged \(.*\): restore it .* run .* again.*",
    ),
    # Schedules.
    ("nightly tale --at 25:00", nothing, 2, "error  --at '25:00' is not a time of day: write hours and minutes, as .*"),
    ("nightly tale --at two", nothing, 2, "error  --at 'two' is not a time of day: write hours and minutes, as .*"),
    (
        "nightly tale --timezone Europe/Berln",
        nothing,
        2,
        r"error  --timezone 'Europe/Berln' is not a time zone \(did you mean Europe/Berlin\?\): write it as .*",
    ),
    ("nightly new --recipe dmo", nothing, 2, r"error  there is no recipe 'dmo' \(did you mean demo\?\): choose .*"),
    (
        "nightly tale --recipe tinystories",
        nothing,
        2,
        "error  lineage tale was started with recipe demo, not tinystories: leave out --recipe",
    ),
    ("nightly tale", nothing, 2, "error  nothing is up for @/runs, and a schedule needs it: start spin up first"),
    ("nightly tale --off", nothing, 2, "error  nothing is up for @/runs, and a schedule needs it: start spin up .*"),
    # Copies.
    (
        "push tale file://@/runs",
        nothing,
        2,
        "error  file://@/runs/tale is the lineage's own folder @/runs/tale: push .*",
    ),
    (
        "push tale file://@/runs/tale",
        nothing,
        2,
        "error  .* is the lineage's own folder @/runs/tale: push to another one",
    ),
    ("push tale file://@/runs/tale/iter_00", nothing, 2, "error  .* is the lineage's own folder @/runs/tale: push .*"),
    ("push tale ftp://localhost/x", nothing, 2, "error  push.url cannot begin with ftp://, .*: use s3://, .*"),
    ("push tale https://localhost/x", nothing, 2, "error  push.url cannot begin with https://, .*: use s3://, .*"),
    ("pull tale ftp://localhost/x", nothing, 2, "error  push.url cannot begin with ftp://, .*: use s3://, .*"),
    # Settings.
    ("check demo --set .=1", nothing, 2, "error  --set '.' is not the name of a setting: see .*"),
    ("check demo --set train..beta=1", nothing, 2, "error  --set 'train..beta' is not the name of a setting: see .*"),
    (f"check demo --set a{'.a' * 3000}=1", nothing, 2, "error  --set .* is not the name of a setting: see .*"),
    (f"check demo --set train={'[' * 3000}", nothing, 2, "error  --set .*more than 50 levels of nesting.*"),
    ("check demo --set train={beta:1,beta:2}", nothing, 2, "error  .*is not a setting.*"),
    ("check demo --set train={[1]:2}", nothing, 2, r"error  --set .*the key \[1\], which is not text\): fix or .*"),
    ("check demo --set seed=-1", nothing, 2, "error  seed cannot be -1: give 0 or more"),
    ("check demo --set play_seed=-1", nothing, 2, "error  play_seed cannot be -1: give 0 or more"),
    (f"check demo --set seed={10**30}", nothing, 2, r"error  seed must be a number below 2\^63: lower it"),
    (f"check demo --set prompts.sample={10**30}", nothing, 2, r"error  prompts\.sample must be a number below 2\^63.*"),
    (f"check demo --set train.beta=[1,{10**30}]", nothing, 2, r"error  train\.beta must be a number below 2\^63: .*"),
    (
        f"check demo --set seed={'9' * 5000}",
        nothing,
        2,
        "error  --set .{,130} .*more than 100 digits.*: fix or quote it",
    ),
    (
        "check demo --set train.learning_rate=.nan",
        nothing,
        2,
        "error  train.learning_rate cannot be nan: give a finite number",
    ),
    (
        "check demo --set train.learning_rate=.inf",
        nothing,
        2,
        "error  train.learning_rate cannot be inf: give a finite number",
    ),
    ("check demo --set prompts.sample=-.inf", nothing, 2, "error  prompts.sample cannot be -inf: give a finite number"),
    (
        "check demo --set seed=2020-01-01",
        nothing,
        2,
        r"error  seed cannot be datetime\.date\(.*\): give a whole number",
    ),
    ("check demo --set iterations=0", nothing, 2, "error  iterations cannot be 0: give a number greater than 0"),
    ("check @/runs", nothing, 2, "error  there is no recipe '@/runs': choose one of .*"),
    # Names.
    *(
        (command.format(name), nothing, 2, "error  '.*' cannot name a lineage: use lower-case letters, digits and .*")
        for command in ("run demo --lineage {}", "compare demo --name {}", "leaderboard {}")
        for name in ("", "..", "a/b", "Tale")
    ),
    (
        "show tale 99999999999999999999",
        nothing,
        2,
        r"error  lineage tale has no finished iteration 9+: choose from 0 to 1",
    ),
    ("evaluate tale 99999999999999999999", nothing, 2, "error  lineage tale has no θ_9+: choose from 0 to 2"),
    ("push tale file:///dev/null", nothing, 75, r"error  file:///dev/null/tale cannot be reached \(.*\): check .*"),
    (
        "check demo --config /dev/zero",
        nothing,
        2,
        "error  /dev/zero has more than 10,000,000 characters: give a file .*",
    ),
    ("pull tale file://", nothing, 2, "error  push.url must be like s3://bucket/folder, .*"),
]


@pytest.fixture
def folder(tmp_path, lineage) -> Path:
    """A folder with a copy of the finished lineage `tale` in `runs`, which may be damaged."""
    shutil.copytree(lineage.runs, tmp_path / "runs", symlinks=True)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "damage", "status", "line"),
    TABLE,
    ids=[f"{number}: {row[0][:40]}" for number, row in enumerate(TABLE)],
)
def test_bad_input_is_one_line(folder, monkeypatch, command, damage, status, line):
    monkeypatch.setenv("SPIN_RUNS", str(folder / "runs"))
    damage(folder / "runs" / "tale")
    result = run_spin(*command.replace("@", str(folder)).split(" "), status=status)
    assert re.fullmatch(line.replace("@", re.escape(str(folder))), result.stderr.removesuffix("\n")), result.stderr
    assert result.stdout == ""


LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)

FILES: dict[str, tuple[str, str, str]] = {
    "nested": ("f.yaml", "a: " + "[" * 5000, rf"line 1, column \d+: more than {MAX_DEPTH} levels of nesting: fix .*"),
    "nested braces": ("f.yaml", "{a: " * 3000, rf"line 1, column \d+: more than {MAX_DEPTH} levels of nesting: .*"),
    "nested blocks": ("f.yaml", "- " * 3000, rf"line 1, column \d+: more than {MAX_DEPTH} levels of nesting: fix .*"),
    "nested TOML": ("f.toml", "a = " + "[" * 5000, r".*nested too deeply.*|.*not valid TOML.*"),
    "a key twice": (
        "f.yaml",
        "train:\n  beta: 0.1\n  epochs: 1\n  beta: 0.2\n",
        r"line 4, column 3: the key 'beta' a second time: fix that line",
    ),
    "a section twice": (
        "f.yaml",
        "train: {beta: 0.1}\nseed: 1\ntrain: {epochs: 1}\n",
        r"line 3, column 1: the key 'train' a second time: fix that line",
    ),
    "a billion laughs": ("f.yaml", LAUGHS, rf"line 5, column \d+: more than {MAX_VALUES} values: fix that line"),
    "a number of thousands of digits": (
        "f.yaml",
        f"seed: {'9' * 5000}",
        r"line 1, column 7: a number of more than 100.*",
    ),
    "the same in TOML": ("f.toml", f"seed = {'9' * 5000}", r"has a number of too many digits: shorten it"),
    "a key that is a number": ("f.yaml", "seed: 1\n1: 2\n", r"line 2, column 1: the key 1, which is not text: fix .*"),
    "a key that is nothing": ("f.yaml", "null: 2\n", r"line 1, column 1: the key None, which is not text: fix .*"),
    "nothing": ("f.yaml", "", r"has no settings: write them as .*"),
    "comments alone": ("f.yaml", "# seed: 1\n", r"has no settings: write them as .*"),
    "a list": ("f.yaml", "- seed\n", r"has no settings: write them as .*"),
    "two documents": ("f.yaml", "seed: 1\n---\nseed: 2\n", r"line 2, column 1: but found another document: fix .*"),
    "a tabulator": ("f.yaml", "train:\n\tbeta: 1\n", r"line 2, column 1: found character .* cannot start any .*"),
    "a zero byte": ("f.yaml", "seed: 1\0\n", r"unacceptable character #x0000: .*: fix that line"),
    "code": ("f.yaml", "seed: !!python/object/apply:os.getpid []\n", r"line 1, column 7: could not determine .*"),
    "a value in itself": ("f.yaml", "a: &a [1, *a]", r"line 1, column \d+: a value that contains itself: fix .*"),
}


@pytest.mark.parametrize(("name", "text", "line"), FILES.values(), ids=FILES)
def test_a_file_of_settings_that_cannot_be_right_is_one_line(tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    result = run_spin("check", "demo", "--config", tmp_path / name, status=2)
    (error_line,) = result.stderr.splitlines()
    assert re.fullmatch(rf"error  {re.escape(str(tmp_path))}/{name}( is not valid YAML,)? ({line})", error_line), (
        error_line
    )


@pytest.mark.parametrize("text", ["\ufeffseed: 7\ntrain:\n  beta: 0.2\n", "seed: 7\r\ntrain:\r\n  beta: 0.2\r\n"])
def test_a_byte_order_mark_and_line_ends_of_windows_are_accepted(tmp_path, text):
    file = tmp_path / "f.yaml"
    file.write_bytes(text.encode())
    config = resolve("demo", file=file)
    assert (config.seed, config.train.beta) == (7, 0.2)


def test_text_in_another_encoding_is_one_line(tmp_path):
    file = tmp_path / "f.yaml"
    for encoding in ("utf-16", "latin-1"):
        file.write_bytes("recipe: café\n".encode(encoding))
        line = run_spin("check", "demo", "--config", file, status=2).stderr
        assert re.fullmatch(rf"error  {file} is not text in UTF-8 \(.*\): save it as UTF-8\n", line)


def test_merged_mappings_and_references_still_work(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("train: &t {epochs: 2, batch_size: 64}\nsft:\n  train: {<<: *t, epochs: 3}\n")
    config = resolve("demo", file=file)
    assert (config.train.epochs, config.train.batch_size) == (2, 64)
    assert (config.sft.train.epochs, config.sft.train.batch_size) == (3, 64)


COMMANDS = (
    "run demo", "next demo", "evaluate demo", "compare demo", "up --port 4999", "status", "down", "leaderboard",
    "check demo", "verify demo", "show demo", "samples demo", "pull demo file:///nowhere", "push demo file:///nowhere",
)  # fmt: skip

FOLDERS = {
    "below a device": ("/dev/null/x", "cannot be a folder, because /dev/null is a file: choose another folder"),
    "a file": ("@/file", "cannot be a folder, because @/file is a file: choose another folder"),
    "below a file": ("@/file/runs", "cannot be a folder, because @/file is a file: choose another folder"),
    "a long name": (f"@/{'n' * 300}", r"cannot be a folder \(File name too long\): choose another folder"),
    "a line feed": ("@/two\nlines", "has characters that cannot be printed: choose another folder"),
    "not UTF-8": ("@/\udcff", "has characters that cannot be printed: choose another folder"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("runs", "line"), FOLDERS.values(), ids=FOLDERS)
def test_a_runs_folder_that_cannot_be_made_is_one_line(tmp_path, runs, line, command):
    (tmp_path / "file").touch()
    result = run_spin(*command.split(), "--runs", runs.replace("@", str(tmp_path)), status=2)
    (error_line,) = result.stderr.splitlines()
    assert re.fullmatch(f"error  --runs .* {line}".replace("@", re.escape(str(tmp_path))), error_line), error_line


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", ["run demo", "compare demo"])
def test_a_runs_folder_that_the_system_refuses_is_one_line(command):
    result = run_spin(*command.split(), "--runs", "/proc/no-such-folder", status=2)
    (error_line,) = result.stderr.splitlines()
    assert re.fullmatch(r"error  /proc/no-such-folder.* cannot be created \(.*\): choose another .*", error_line), (
        error_line
    )


def test_a_lost_record_is_a_warning_where_other_iterations_are_shown(folder):
    (folder / "runs" / "tale" / "iter_01" / "record.json").unlink()
    for command in ("show", "leaderboard"):
        result = run_spin(command, "tale", "--runs", folder / "runs")
        assert re.fullmatch(
            r"warning  .*/iter_01/record\.json is missing, though the iteration is finished: spin verify tale .*\n",
            result.stderr,
        )
    assert run_spin("verify", "tale", "--runs", folder / "runs", status=1).stderr.count("\n") == 1


def test_an_iteration_that_is_not_finished_lacks_nothing(folder):
    root = folder / "runs" / "tale" / "iter_01"
    (root / "record.json").unlink()
    shutil.rmtree(root / "eval")
    assert run_spin("show", "tale", "--runs", folder / "runs").stderr == ""
    run_spin("verify", "tale", "--runs", folder / "runs")


def spin_process(*arguments: str, stdout: Any, **variables: str) -> tuple[int, str, str]:
    """Status, output and errors of the command in its own process, with its output in a file or a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.command_line", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout or "", done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["leaderboard tale", "leaderboard tale --json", "show tale", "recipes", "--help"])
def test_output_on_a_full_disk_is_one_line(lineage, command):
    with Path("/dev/full").open("w") as full:
        status, _, errors = spin_process(*command.split(), stdout=full, SPIN_RUNS=str(lineage.runs))
    line = "standard output cannot be written (No space left on device): send it to another file or to a terminal"
    assert (status, errors) == (2, f"error  {line}\n")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("command", ["leaderboard tale", "show tale", "samples tale", "leaderboard tale --json"])
def test_output_in_ascii_shows_other_letters_by_their_codes(lineage, command, variables):
    status, output, errors = spin_process(
        *command.split(), stdout=subprocess.PIPE, SPIN_RUNS=str(lineage.runs), **variables
    )
    assert (status, errors) == (0, "")
    assert re.search(r"θ_1|\\u03b8_1", output)
    if "--json" in command:
        assert json.loads(output)["rows"][1]["name"].endswith("1")


@pytest.mark.parametrize("command", ["leaderboard tale", "leaderboard tale --csv", "recipes --settings", "show tale"])
def test_a_reader_that_has_seen_enough_is_no_error(lineage, command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert spin_process(*command.split(), stdout=writer, SPIN_RUNS=str(lineage.runs)) == (0, "", "")
    finally:
        os.close(writer)


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None},
    "a home that does not exist": {"HOME": "/nonexistent"},
    "no folder for temporary files": {"TMPDIR": "/nonexistent"},
    "an unknown locale": {"LC_ALL": "xx_YY.bogus", "LANG": "?"},
    "an unknown time zone": {"TZ": "No/Where"},
    "an unknown terminal": {"TERM": "bogus", "COLUMNS": "many"},
    "a terminal without columns": {"COLUMNS": "0"},
    "settings of servers that are none": {"SPIN_UP": "?", "SPIN_RERUNS": "?"},
}


@pytest.mark.parametrize("variables", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_leaderboard_is_shown_in_odd_surroundings(lineage, monkeypatch, variables):
    monkeypatch.setenv("SPIN_RUNS", str(lineage.runs))
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    status, output, errors = spin_process("leaderboard", "tale", stdout=subprocess.PIPE)
    assert (status, errors) == (0, "")
    assert "θ_2" in output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(lineage, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "flows.command_line", "leaderboard"]
    done = subprocess.run(
        [*command, "tale", "--runs", lineage.runs], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("θ_2" in done.stdout) == (" >&-" not in f" {closed}" or closed == "2>&-")


LOOPS = {
    "a link to itself": (
        "loop",
        r"/loop/.* cannot be created \(Too many levels of symbolic links\): choose another .*",
    ),
    "a link to nothing": ("gone", r"/gone cannot be created, because a file is in the way: remove that file, or .*"),
}


@pytest.mark.parametrize(("target", "line"), LOOPS.values(), ids=LOOPS)
def test_a_runs_folder_that_is_a_link_to_nowhere_is_one_line(tmp_path, target, line):
    (tmp_path / target).symlink_to(tmp_path / ("loop" if target == "loop" else "absent"))
    error_line = run_spin("run", "demo", "--runs", tmp_path / target, status=2).stderr
    assert re.fullmatch(f"error  {re.escape(str(tmp_path))}{line}\n", error_line), error_line
