"""Tells a lineage's points to its sinks while it is played: `python -m spin_core.tracking.follow RUNS LINEAGE`.

A process of its own, so that a sink that is slow, or away, keeps nobody waiting. It reads the lineage's folder alone,
until its stdin ends; then once more. Each line on stdout is something that a person should know. A sink that fails is
told once and left: what it did not get, it gets in the next run.
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
from spin_core.tracking.sinks import Sink, opened

EVERY_SECONDS = 2.0

REPORTS_NOTHING = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Sinks take a lineage's points; how they are used is no one's business."""


class Follower:
    """One sink, and how far it is."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink, self.last = name, sink, sink.last()

    def follow(self, game: Lineage) -> None:
        """Tell it what is new."""
        new = list(points(game, self.last))
        if new:
            self.sink.write(new)
            self.last = after(self.last, new)


def after(last: Last, new: list[Point]) -> Last:
    """The last points, once these have been told."""
    for point in new:
        last = last._replace(version=point.at) if point.kind == VERSION else last._replace(step=point.at)
    return last


def without_users(text: str) -> str:
    """The text with whoever stands before a host left out of its URLs, since that brings a password."""
    return re.sub(r"://\S*@", "://", text)


def main() -> None:
    """Follow until stdin ends."""
    die_with_parent()
    out = claim_stdout()
    warnings.simplefilter("ignore")
    for name, value in REPORTS_NOTHING.items():
        os.environ.setdefault(name, value)
    game = find_lineage(Path(sys.argv[1]), sys.argv[2])

    def failed(name: str, error: Exception) -> None:
        said = without_users(first_line(error))
        print(f"metrics: {name} takes none any more: {said}; the next run makes up for it", file=out)
        out.flush()

    followers: list[Follower] = []
    for name in game.config.metrics.sinks:
        try:
            followers.append(Follower(name, opened(name, game)))
        except Exception as error:  # whatever a sink does, the game goes on
            failed(name, error)
    ended = False
    while followers and not ended:
        ended = bool(select.select([sys.stdin], [], [], EVERY_SECONDS)[0])
        for one in list(followers):
            try:
                one.follow(game)
                if ended:
                    one.sink.close()
            except Exception as error:  # as above
                failed(one.name, error)
                followers.remove(one)


if __name__ == "__main__":
    main()
