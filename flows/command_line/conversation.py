"""A conversation in the terminal: with one version, with two side by side, or blind with a vote on every question."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from flows.command_line.options import warn
from flows.command_line.printing.console import console
from flows.command_line.printing.samples import visible
from spin_core.config.run import RunConfig
from spin_core.data.chat import Message
from spin_core.data.seeds import seed_of
from spin_core.errors import LineageBusy, SpinError
from spin_core.inference.speaker import Speaker
from spin_core.leaderboard import board, votes
from spin_core.lineage.lineage import Lineage
from spin_core.store.files import storage_errors
from spin_core.store.journal import Journal
from spin_core.store.lock import locked
from spin_core.store.records import ModelVersion

HELP = """\
/system TEXT      set the system prompt and begin again; without TEXT: the lineage's own
/reset            begin again
/temperature X    set the sampling temperature; without X: show it
/help             show this
/quit             end, as Ctrl-D does; Ctrl-C stops an answer"""

CHOICES = {"a": 1.0, "b": 0.0, "=": 0.5}
"""What a voter types, and the value of the vote for the side that is shown as A."""


class Side:
    """A version, and the conversation as it has seen it."""

    def __init__(self, version: ModelVersion, config: RunConfig) -> None:
        self.version, self.name = version, f"θ_{version.t}"
        self.speaker = Speaker(version, config)
        self.turns: list[Message] = []


class Conversation:
    """Reads lines, answers them and carries out commands, until the input ends."""

    def __init__(
        self, lineage: Lineage, sides: list[Side], *, blind: bool = False, history: Path | None = None
    ) -> None:
        self.lineage, self.sides, self.blind = lineage, sides, blind
        self.system = ""
        """A system prompt instead of the lineage's; empty for that one."""
        self.tally: Counter[float] = Counter()
        self._questions = 0
        self._seed = time.time_ns()
        if history:
            with storage_errors(history.parent):
                history.parent.mkdir(parents=True, exist_ok=True)
        self._history = Journal(history) if history else None

    def run(self) -> None:
        """Talk until /quit or the end of the input. Then the votes become a score."""
        click.echo("/help lists commands; Ctrl-D ends")
        for line in _lines():
            if line.startswith("/"):
                if not self._command(*line[1:].partition(" ")[::2]):
                    break
            else:
                self._ask(line)
        if self.tally:
            self._publish()

    def set_temperature(self, value: float) -> None:
        """Set the sampling temperature of all sides."""
        for side in self.sides:
            side.speaker.temperature = value

    def reset(self) -> None:
        """Begin a new conversation."""
        for side in self.sides:
            side.turns = []

    def _command(self, name: str, value: str) -> bool:
        """Carry out a command; returns whether the conversation goes on."""
        match name:
            case "quit" | "exit":
                return False
            case "help":
                click.echo(HELP)
            case "reset":
                self.reset()
                click.echo("new conversation")
            case "system" | "temperature" if self.blind and value.strip():
                click.echo("votes are about the lineage's own settings: change them in a chat without --blind")
            case "system":
                self.system = value.strip()
                self.reset()
                click.echo("new conversation with " + ("this system prompt" if self.system else "the lineage's own"))
            case "temperature":
                self._change_temperature(value.strip())
            case _:
                click.echo(f"/{visible(name)} is not a command: /help lists them")
        return True

    def _change_temperature(self, text: str) -> None:
        """Set the temperature that was typed, and show the one in use."""
        if text:
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if not 0 <= value < float("inf"):
                click.echo(f"temperature cannot be {visible(text)}: give a number from 0 on")
                return
            self.set_temperature(value)
        click.echo(f"temperature {self.sides[0].speaker.temperature:g}")

    def _ask(self, question: str) -> None:
        """Answer a question, and let a blind one be voted on. Ctrl-C stops the answer and takes the question back."""
        if self.blind:  # votes on questions of one conversation would not be independent
            self.reset()
        self._questions += 1
        order = list(self.sides)
        if self.blind:
            random.shuffle(order)
        try:
            answers = {side.name: self._answer(side, question) for side in order}
        except KeyboardInterrupt:
            click.echo("\nstopped; the question is taken back")
            return
        except SpinError as error:
            click.echo(f"{click.style('error', fg='red', bold=True)}  {error}", err=True)
            return
        if len(order) > 1:
            names = ["A", "B"] if self.blind else [side.name for side in order]
            console.print(_side_by_side(names, [answers[side.name] for side in order]))
        for side in order:
            side.turns += [_user(question), {"role": "assistant", "content": answers[side.name]}]
        self._keep(question, answers)
        if self.blind:
            self._vote(question, order)

    def _answer(self, side: Side, question: str) -> str:
        """A side's answer. One that is alone is printed as it is sampled."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*system, *side.turns, _user(question)]
        text = ""
        for piece in side.speaker.answer(turns, seed_of(self._seed, "chat", self._questions, side.version.t)):
            text += piece
            if len(self.sides) == 1:
                click.echo(visible(piece), nl=False)
        if len(self.sides) == 1:
            click.echo()
        return text

    def _vote(self, question: str, order: list[Side]) -> None:
        """Ask which answer is better, keep the vote, and only then show which answer was whose."""
        choice = ""
        while choice not in (*CHOICES, "s"):
            try:
                choice = input("better: a, b, = (a tie), s (skip)? ").strip().lower()
            except (EOFError, KeyboardInterrupt):
                choice = "s"
        first, second = self.sides
        names = " and ".join(f"{letter} was {side.name}" for letter, side in zip("AB", order, strict=True))
        if choice == "s":
            click.echo(f"no vote; {names}")
            return
        value = CHOICES[choice] if order[0] is first else 1 - CHOICES[choice]
        vote = votes.Vote(
            id=f"{time.time_ns()}",
            t=first.version.t,
            digest=first.version.digest,
            against=second.version.t,
            against_digest=second.version.digest,
            value=value,
            question=question,
        )
        votes.add_vote(self.lineage, vote)
        self.tally[value] += 1
        won, tied, lost = (self.tally[each] for each in (1.0, 0.5, 0.0))
        click.echo(f"{names}; {first.name} won {won}, tied {tied}, lost {lost}")

    def _publish(self) -> None:
        """Make all votes on the first side's version a score of the leaderboard."""
        first = self.sides[0]
        try:
            with locked(self.lineage.root):
                report = votes.publish_votes(self.lineage, first.version)
                board.save(self.lineage)
        except LineageBusy as error:
            warn(f"votes are kept, and become a score when the next ones do: {error}")
            return
        assert report is not None
        for name, score in report.scores.items():
            click.echo(f"{name.replace('_', ' ')}: {first.name} {board.format_score(score)} of {score.n} votes")

    def _keep(self, question: str, answers: dict[str, str]) -> None:
        """Append a question and its answers to the history's file."""
        if self._history is None:
            return
        with storage_errors(self._history.path.parent):
            self._history.add(
                {
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                    "lineage": self.lineage.name,
                    "system": self.system,
                    "temperature": self.sides[0].speaker.temperature,
                    "question": question,
                    "answers": answers,
                }
            )


def _lines() -> Iterator[str]:
    """The lines that are typed, without empty ones."""
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if line:
            yield line


def _user(question: str) -> Message:
    return {"role": "user", "content": question}


def _side_by_side(names: list[str], answers: list[str]) -> Table:
    """Two answers in two columns."""
    table = Table(expand=True)
    for name in names:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(visible(answer)) for answer in answers))
    return table
