"""Journals that a killed process has written."""

from spin_core.store.journal import Journal


def test_an_incomplete_last_line_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.add({"key": "a", "reply": "two\nlines ü \u2028"})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "rep')
    again = Journal(path)
    again.add({"key": "c"})
    assert [row["key"] for row in Journal(path).rows] == ["a", "c"]
    assert Journal(path).rows[0] == journal.rows[0]
