"""How many examples of each of several sources are taken, and which."""

from collections.abc import Mapping, Sequence

import numpy as np

from spin_core.config.data import MixedSource
from spin_core.data.files.ids import Ids, sample
from spin_core.data.sequences import Ints
from spin_core.errors import DataError, count


def mixture_counts(sources: Mapping[str, MixedSource], available: Mapping[str, int]) -> dict[str, int]:
    """How many examples to take of each source.

    With weights, as many as possible in these proportions, so that none is repeated. Otherwise the number of rows that
    the source names, or all.

    Args:
        sources: the sources, by name.
        available: how many examples each has.

    Raises:
        DataError: a source has fewer examples than it is to give.
    """
    weights = {name: source.weight for name, source in sources.items() if source.weight is not None}
    if weights:
        unit = min(available[name] / weight for name, weight in weights.items())
        return {name: min(available[name], max(1, round(unit * weight))) for name, weight in weights.items()}
    for name, source in sources.items():
        if source.rows is not None and source.rows > available[name]:
            raise DataError(
                f"prompts.sources.{name}.rows is {source.rows}, but {source.path} has only "
                f"{count(available[name], 'usable row')}: lower it"
            )
    return {name: source.rows or available[name] for name, source in sources.items()}


def mix_rows(sources: Mapping[str, MixedSource], names: Sequence[str], ids_N: Ids, seed: int) -> Ints:
    """The rows that make the mixture, in their order.

    Which rows of a source they are depends on their prompts and the seed alone, so that a smaller number of rows is a
    part of a larger one.

    Args:
        sources: the sources, by name.
        names: the name of the source of each row.
        ids_N: the id of each row.
        seed: another seed takes other rows.
    """
    names_N = np.array(names)
    rows = {name: np.flatnonzero(names_N == name) for name in sources}
    counts = mixture_counts(sources, {name: len(own) for name, own in rows.items()})
    return np.sort(np.concatenate([own[sample(ids_N[own], counts[name], seed)] for name, own in rows.items()]))
