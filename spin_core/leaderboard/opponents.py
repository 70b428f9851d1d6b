"""The models that answer in an iteration, if it is not θ_t alone (`generate.opponents`).

The player always starts from θ_t, and its margin is measured against θ_t. Let the answers come from a distribution q, a
mixture or an older version. The logistic loss is then minimal where λ log p(y)/p_t(y) = log p_data(y)/q(y) + const, and
an iteration moves p_t to p_{t+1} ∝ p_t (p_data/q)^{1/λ}. With q = p_t this is theorem 5.4 of the paper. The first loss
is log 2 for any q, because the player equals its reference on every token, whichever model generated it. Answers that
q gives and θ_t no longer does are pushed down further.

Two consequences. The fixed point is q = p_data, not p_t = p_data: a mixture reaches it only when all its versions do.
And weighting each answer by p_t(y')/q(y') would restore the paper's step, but with the variance of a whole sequence's
ratio, and would undo the purpose of the mixture. `train.anchor` mixes the reference too, as in arXiv 2404.04291.
"""

from collections.abc import Mapping, Sequence

from spin_core.config.run import RunConfig
from spin_core.leaderboard import gate
from spin_core.store.records import EvalReport, ModelVersion


def answering_models(
    config: RunConfig,
    opponent: ModelVersion,
    versions: Mapping[int, ModelVersion],
    reports: Mapping[int, Sequence[EvalReport]],
) -> tuple[ModelVersion, ...]:
    """The models that answer instead of the opponent alone, newest first; empty if it answers alone.

    Args:
        config: The run's settings.
        opponent: θ_t.
        versions: θ_0, θ_1, … as far as they exist.
        reports: Their evaluations.

    Raises:
        ConfigError: The best version is to answer, and no report has the gate's metric.
    """
    settings = config.generate.opponents
    chosen: tuple[ModelVersion, ...] = (opponent,)
    if settings.kind == "mixture":
        chosen = ancestors(opponent, versions)[: settings.history]
    elif settings.kind == "best":
        chosen = (versions[gate.best(config, reports, max(versions))[0]],)
    return chosen if chosen != (opponent,) else ()


def ancestors(version: ModelVersion, versions: Mapping[int, ModelVersion]) -> tuple[ModelVersion, ...]:
    """A version and the versions it was trained from, newest first. Those that the gate rejected are not among them."""
    by_digest = {version.digest: version for version in versions.values()}
    chain = [version]
    while (parent := by_digest.get(chain[-1].parent or "")) is not None:
        chain.append(parent)
    return tuple(chain)
