"""Verdicts of MT-Bench's judge: how they are requested, read from a reply, and counted.

Only what the judge itself writes is read, and the last well-formed verdict in it counts, since judges quote what they
read before they decide.

A judge prefers what it reads first, so two answers are shown twice, the second time in the other order. An answer wins
if both verdicts are for it; anything else is a tie, which counts as half a win.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from spin_core.data.chat import Message
from spin_core.evaluation.mt_bench.judge_prompts import PAIR, SINGLE, Prompts, fill, prompt_name, prompt_values
from spin_core.evaluation.mt_bench.questions import Question
from spin_core.evaluation.statistics import NORMAL

VERSION = 2
"""Raise it when verdicts are requested or read in another way: verdicts of other versions are not reused."""

_GRADE = re.compile(r"\[\[\s*(\d{1,2}(?:\.\d+)?)\s*\]\]")

_CHOICE = re.compile(r"\[\[\s*([ABC])\s*\]\]")


class VerdictRequest(NamedTuple):
    """A request for one verdict."""

    kind: str
    """`single` or `pair`."""
    messages: list[Message]

    @property
    def key(self) -> str:
        """Its key in the journal. Requests with the same messages have the same key."""
        return hashlib.sha256(json.dumps(self.messages, ensure_ascii=False).encode()).hexdigest()


class Comparison(NamedTuple):
    """A comparison of two answers to one turn of a question: the player's, and another one."""

    against: str
    """`previous`, `base` or `human`: whose answer the other one is."""
    item: str
    """The question's id."""
    turn: int
    requests: tuple[VerdictRequest, ...]
    """The player's answer as A, then as B. Empty if both answers are equal: a tie, for which no judge is needed."""


def grade_request(prompts: Prompts, question: Question, answers: Sequence[str], turn: int) -> VerdictRequest:
    """Return the request to grade the answer of a turn; `answers` are those of all turns."""
    references = question.references[:turn]
    prompt = prompts[prompt_name(SINGLE, reference=bool(references), turn=turn)]
    values = prompt_values(question.turns[:turn], references, answer=answers[:turn])
    return VerdictRequest(SINGLE, fill(prompt, values))


def compare(
    prompts: Prompts, against: str, question: Question, *, player: Sequence[str], other: Sequence[str], turn: int
) -> Comparison:
    """Return the comparison of the answers of a turn; `player` and `other` are the answers of all turns."""
    player, other = player[:turn], other[:turn]
    assert len(player) == len(other) == turn
    if list(player) == list(other):
        return Comparison(against, question.id, turn, ())
    references = question.references[:turn]
    prompt = prompts[prompt_name(PAIR, reference=bool(references), turn=turn)]
    requests = tuple(
        VerdictRequest(PAIR, fill(prompt, prompt_values(question.turns[:turn], references, answer_a=a, answer_b=b)))
        for a, b in ((player, other), (other, player))
    )
    return Comparison(against, question.id, turn, requests)


def parse_grade(reply: str) -> float | None:
    """Return the last grade from 1 to 10 in double square brackets; None if there is none."""
    grades = [float(grade) for grade in _GRADE.findall(reply)]
    return next((grade for grade in reversed(grades) if 1 <= grade <= 10), None)


def parse_choice(reply: str) -> str | None:
    """Return the last of `A`, `B` and `C` (a tie) in double square brackets; None if there is none."""
    choices: list[str] = _CHOICE.findall(reply)
    return choices[-1] if choices else None


PARSERS: dict[str, Callable[[str], float | str | None]] = {SINGLE: parse_grade, PAIR: parse_choice}

REMINDERS = {
    SINGLE: "There is no grade in your reply that can be read. Give it now in double square brackets, from 1 to 10, "
    "such as [[4]], and write nothing else.",
    PAIR: "There is no verdict in your reply that can be read. Give it now in double square brackets, [[A]], [[B]] or "
    "[[C]] for a tie, and write nothing else.",
}
"""The message after a reply without a readable verdict."""


def win_value(verdicts: Sequence[str | None]) -> float | None:
    """Return 1 if the player's answer won, 0 if it lost, .5 for a tie; None if a verdict is missing.

    Args:
        verdicts: The choices for a comparison's requests: the player is A in the first one and B in the second.
            Empty for equal answers, which are a tie.
    """
    if not verdicts:
        return 0.5
    first, second = verdicts
    if first is None or second is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((first, second), 0.5)


def wilson_interval(rate: float, n: int, z: float = NORMAL) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a win rate over n items (Wilson 1927); (0, 1) for no items.

    It is derived for wins and losses. Ties, and items that are means of two turns, vary less, so for them the interval
    is too wide rather than too narrow.
    """
    if n == 0:
        return 0.0, 1.0
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, center - half_width), min(1.0, center + half_width)
