"""Who answers in an iteration, where it is not θ_t alone.

The player starts from θ_t and its margin is measured against θ_t all the same. Say that the answers come from q, a
mixture or an older version: the logistic loss is least where λ log p(y)/p_t(y) = log p_data(y)/q(y) + const, so an
iteration moves p_t to p_{t+1} ∝ p_t (p_data/q)^{1/λ}. With q = p_t this is the paper's theorem 5.4. The first loss is
log 2 for any q, since the player is its reference on every token, whoever said it; and what θ_t does not say any more,
but q does, is pushed down further.

Two things to know. The game rests where q, not p_t, is p_data, so a mixture comes to rest only once all its versions
do. And to weigh each answer by p_t(y')/q(y') would bring the paper's step back, but with the variance of a whole
sequence's ratio, and would undo what the mixture is for. For a reference that is mixed too, as in arXiv 2404.04291,
there is `train.anchor`.
"""

from collections.abc import Mapping, Sequence

from spin_core.config.run import RunConfig
from spin_core.leaderboard import gate
from spin_core.store.records import EvalReport, ModelVersion


def answerers(
    config: RunConfig,
    opponent: ModelVersion,
    versions: Mapping[int, ModelVersion],
    reports: Mapping[int, Sequence[EvalReport]],
) -> tuple[ModelVersion, ...]:
    """Who answers in place of the opponent alone, newest first; empty if nobody does.

    `versions` and `reports` are those of θ_0, θ_1, … as far as there are any. Raises `ConfigError` if
    the gate's metric is in no report and the best version is asked for.
    """
    asked = config.generate.opponents
    chosen: tuple[ModelVersion, ...] = (opponent,)
    if asked.kind == "mixture":
        chosen = descent(opponent, versions)[: asked.history]
    elif asked.kind == "best":
        chosen = (versions[gate.best(config, reports, max(versions))[0]],)
    return chosen if chosen != (opponent,) else ()


def descent(version: ModelVersion, versions: Mapping[int, ModelVersion]) -> tuple[ModelVersion, ...]:
    """A version and those it was trained from, one after the other. What the gate turned down is not among them."""
    by_digest = {one.digest: one for one in versions.values()}
    found = [version]
    while (parent := by_digest.get(found[-1].parent or "")) is not None:
        found.append(parent)
    return tuple(found)
