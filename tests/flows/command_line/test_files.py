"""Commands that write files for other programs: `spin export`."""

import json

import pytest


@pytest.mark.parametrize("form", ["dpo", "spin"])
def test_pairs_are_exported_for_other_programs(spin, tmp_path, form):
    out = tmp_path / "pairs.jsonl"
    result = spin("export", "tale", 1, "--format", form, "-o", out)
    assert result.stdout == f"1 pair in {out}\n"
    (row,) = map(json.loads, out.read_text().splitlines())
    assert set(row) == ({"prompt", "chosen", "rejected"} if form == "dpo" else {"real", "generated"})


def test_exported_pairs_have_a_name_of_their_own(spin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spin("export", "tale", 0, "--format", "dpo")
    assert [path.name for path in tmp_path.iterdir()] == ["tale-iteration-00-dpo.jsonl"]


def test_an_error_of_push_or_pull_is_one_line(spin):
    for command in ("push", "pull"):
        result = spin(command, "tale", "bogus://bucket/folder", status=2)
        assert (result.stdout, result.stderr) == (
            "",
            "error  no store is known whose URLs begin with bogus://: use file, s3, gs or hf\n",
        )
