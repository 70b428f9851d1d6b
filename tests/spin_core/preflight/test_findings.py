"""How findings are collected and written."""

from spin_core.preflight.findings import Inspection, duration, listed, size


def test_numbers_are_written_for_people():
    assert [size(n) for n in (900, 5e5, 2.5e6, 1.26e9, 34e9, 2e12)] == [
        "1 kB", "500 kB", "2.5 MB", "1.3 GB", "34 GB", "2.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (4, 99, 600, 7200 * 1.5, 4e5)] == ["4 s", "99 s", "10 min", "3.0 h", "4.6 days"]
    assert listed([0.1, 0.1]) == "0.1"
    assert listed([5e-7, 1e-7]) == "5e-07, 1e-07"


def test_a_finding_that_nearly_does_not_fit_is_a_warning():
    inspection = Inspection()
    for need in (79, 81, 101):
        inspection.add_need("disk", "it takes much", need, 100, "take less")
    assert [finding.level for finding in inspection.findings] == ["ok", "warn", "wrong"]
    assert inspection.findings[0].text == "it takes much"
    assert inspection.findings[1].text == "it takes much: take less"
