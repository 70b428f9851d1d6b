"""MT-Bench's scores, and the notes on them, from verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from spin_core.errors import count
from spin_core.evaluation.items import Values, mean
from spin_core.evaluation.mt_bench.judge import Verdicts
from spin_core.evaluation.mt_bench.questions import WITH_REFERENCE, Question, TurnKey
from spin_core.evaluation.mt_bench.verdicts import Comparison, VerdictRequest, wilson_interval
from spin_core.store.records import Score

Grades = Mapping[TurnKey, float | None]
"""The grade of each turn's answer, from 1 to 10; None without a verdict."""


def score_name(suite: str, against: str) -> str:
    """Return the name of a comparison's score."""
    return f"{suite}/against-{against}"


def grade_values(suite: str, questions: Sequence[Question], grades: Grades, ids: Sequence[str]) -> Values:
    """Return the grades by score, one for each of `ids`: all turns together, by category, and by turn.

    A question's grade is the mean of its turns' grades. NaN where a question has no grade, or does not belong to the
    score.
    """
    whole = {question.id: _mean_of_known([grades[question.id, 1], grades[question.id, 2]]) for question in questions}
    scores = {suite: whole}
    for category in dict.fromkeys(question.category for question in questions):
        scores[f"{suite}/{category}"] = {
            question.id: whole[question.id] for question in questions if question.category == category
        }
    for turn in (1, 2):
        scores[f"{suite}/turn-{turn}"] = {
            question.id: _mean_of_known([grades[question.id, turn]]) for question in questions
        }
    return {name: np.array([values.get(id, np.nan) for id in ids]) for name, values in scores.items()}


def comparison_values(
    suite: str, comparisons: Sequence[Comparison], win_values: Sequence[float | None], ids: Sequence[str]
) -> Values:
    """Return the win values by score, one for each of `ids`: the mean over the turns, NaN without any."""
    scores: dict[str, dict[str, list[float | None]]] = {}
    for comparison, value in zip(comparisons, win_values, strict=True):
        items = scores.setdefault(score_name(suite, comparison.against), {})
        items.setdefault(comparison.item, []).append(value)
    return {name: np.array([_mean_of_known(items.get(id, [])) for id in ids]) for name, items in scores.items()}


def make_scores(values: Values, win_rates: Sequence[str]) -> dict[str, Score]:
    """Return the mean of each score's values, without the scores that have none.

    Args:
        values: The values by score.
        win_rates: The names of those that are win rates, which get Wilson's interval.
    """
    scores = {name: mean(value_N, name) for name, value_N in values.items() if np.isfinite(value_N).any()}
    for name in win_rates:
        if name in scores:
            interval = wilson_interval(scores[name].value, scores[name].n)
            scores[name] = scores[name].model_copy(update={"interval": interval})
    return scores


def comparison_note(name: str, score: Score, win_values: Sequence[float | None]) -> str:
    """Return a comparison in words: wins, ties and losses over answers, and the win rate over questions."""
    counts = Counter(win_values)
    assert score.interval is not None
    low, high = score.interval
    return (
        f"{name}: won {counts[1.0]}, tied {counts[0.5]} and lost {count(counts[0.0], 'answer')}; "
        f"win rate {score.value:.3f}, 95 % interval {low:.3f} to {high:.3f} over {count(score.n, 'question')}"
    )


def reference_notes(questions: Sequence[Question]) -> list[str]:
    """Return a note on the questions without the reference that MT-Bench judges them with."""
    without = [q for q in questions if q.category in WITH_REFERENCE and not q.references]
    return (
        [f"{count(len(without), 'question')} judged without the reference answer they should have"] if without else []
    )


def fault_notes(requests: Sequence[VerdictRequest], verdicts: Verdicts) -> list[str]:
    """Return how many verdicts are missing, and why."""
    keys = {request.key for request in requests}
    faults = Counter(verdicts.by_key[key]["fault"] for key in keys)
    reasons = {
        "unreadable": "of the judge's verdicts could not be read, asked again and again, and do not count",
        "too long": "verdicts are missing, since what is to be judged is too long for the judge",
        "refused": "verdicts are missing, since the judge's endpoint refuses what is to be judged",
    }
    return [f"{faults[fault]} of {len(keys)} {reason}" for fault, reason in reasons.items() if faults[fault]]


def _mean_of_known(values: Sequence[float | None]) -> float:
    """Return the mean of the values that are not None; NaN if there are none."""
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else float("nan")
