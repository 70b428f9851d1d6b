"""Send a lineage's points to its sinks while it runs: `python -m spin_core.tracking.follow RUNS LINEAGE`.

This is a process of its own, so that a slow or unreachable sink delays no phase. It only reads the lineage's folder,
every two seconds until its stdin ends, and then a last time. Each line on stdout is a message for the user. A sink that
fails is reported once and then skipped: the next run sends it the missing points.
"""

import os
import re
import select
import sys
import warnings
from pathlib import Path

from spin_core.errors import first_line
from spin_core.lineage.find import find_lineage
from spin_core.lineage.lineage import Lineage
from spin_core.runtime.process import die_with_parent
from spin_core.runtime.progress import claim_stdout
from spin_core.tracking.points import VERSION, Last, Point, points
from spin_core.tracking.sinks import Sink, open_sink

_INTERVAL_SECONDS = 2.0

_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Environment variables that keep sinks from reporting how they are used."""


class _Follower:
    """One sink, and the last points that it has."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink, self.last = name, sink, sink.last()

    def follow(self, lineage: Lineage) -> None:
        """Send the sink the points that it lacks."""
        new = list(points(lineage, self.last))
        if new:
            self.sink.write(new)
            self.last = _after(self.last, new)


def _after(last: Last, new: list[Point]) -> Last:
    """The last points of a sink that had `last` and has got these."""
    for point in new:
        last = last._replace(version=point.at) if point.kind == VERSION else last._replace(step=point.at)
    return last


def _without_users(text: str) -> str:
    """The text without the user part of its URLs, which may contain a password."""
    return re.sub(r"://\S*@", "://", text)


def main() -> None:
    """Send points until stdin ends."""
    die_with_parent()
    out = claim_stdout()
    warnings.simplefilter("ignore")
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    lineage = find_lineage(Path(sys.argv[1]), sys.argv[2])

    def report_failure(name: str, error: Exception) -> None:
        reason = _without_users(first_line(error))
        print(f"metrics: {name} failed and gets no more points: {reason}; the next run sends them", file=out)
        out.flush()

    followers: list[_Follower] = []
    for name in lineage.config.metrics.sinks:
        try:
            followers.append(_Follower(name, open_sink(name, lineage)))
        except Exception as error:  # no error of a sink may end the run
            report_failure(name, error)
    ended = False
    while followers and not ended:
        ended = bool(select.select([sys.stdin], [], [], _INTERVAL_SECONDS)[0])
        for follower in list(followers):
            try:
                follower.follow(lineage)
                if ended:
                    follower.sink.close()
            except Exception as error:  # as above
                report_failure(follower.name, error)
                followers.remove(follower)


if __name__ == "__main__":
    main()
