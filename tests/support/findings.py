"""The texts of a check's findings."""

from spin_core.preflight.findings import Findings


def texts_of(result: Findings, subject: str, level: str = "ok") -> list[str]:
    """The texts of the findings about a subject."""
    return [finding.text for finding in result.findings if (finding.subject, finding.level) == (subject, level)]


def only_error(result: Findings) -> str:
    """The only error, as `subject: text`."""
    (line,) = [f"{finding.subject}: {finding.text}" for finding in result.findings if finding.level == "wrong"]
    assert not result.ok
    assert "\n" not in line
    return line
