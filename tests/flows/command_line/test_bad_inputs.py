"""Bad input and damaged files: one line that says what is wrong, where, and how to fix it. Never a traceback.

Each row of the tables is a command, the damage done before it, its exit status, and the line, as a pattern. In commands
and patterns, @ is the folder that holds the runs folder.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    *(
        (
            f"nightly tale --timezone {zone}",
            nothing,
            2,
            f"error  --timezone '{zone}' is not a time zone.*: write it as .*",
        )
        for zone in ("localtime", "Factory")
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
