"""Files of settings that cannot be right: one line with the place, and never a traceback or an endless read."""

import re

import pytest

from spin_core.config.resolve import resolve
from spin_core.config.yaml_text import MAX_DEPTH, MAX_VALUES
from tests.support.processes.command_runner import run_spin

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
