"""Settings of nightly runs: when a lineage that grows by one iteration a night is finished."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from spin_core.config.base import Frozen


class NightlyConfig(Frozen):
    """When the lineage has converged, so that nightly runs stop by themselves. `spin run` does not check this."""

    patience: NonNegativeInt = 3
    """Converged after this many versions in a row of which none is significantly better, by the gate's metric, than the
    best before them. 0 turns this check off."""

    indifference: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Converged when the player's accuracy in telling human answers from the opponent's, on held-out prompts, is
    significantly less than this much above one half. With 0.05, about 300 held-out prompts can show it. 0 turns this
    check off."""
