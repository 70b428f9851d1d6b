"""Settings of the nights: when a lineage that grows by one iteration a night is done."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from spin_core.config.base import Frozen


class NightlyConfig(Frozen):
    """When the game has converged, so that nights stop by themselves. `spin run` plays on all the same."""

    patience: NonNegativeInt = 3
    """So many versions in a row of which none is better than the best before them, by the gate's metric and beyond
    chance: the game gains nothing any more. 0 never looks."""

    indifference: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """The player tells human answers from the opponent's on held-out prompts no better than so much above one half, and
    that beyond chance: nothing is left to learn. With 0.05, some 300 held-out prompts can show it. 0 never looks."""
