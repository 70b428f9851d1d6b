"""What the game is compared with, from the same θ_0 and in the same table: which trainings, and their jobs.

    sft-lr-0.001-steps-96     continued fine-tuning of θ_0, for as many steps as the iterations took together
    sft-lr-0.001-tokens-8000  the same, for as many tokens
    dpo-beta-0.1-…            DPO of θ_0 (arXiv 2305.18290): the logistic loss on people's preferences
    spin-3-dpo-beta-0.1-…     DPO of the last version, θ_3: the paper's table 3
    epochs-6                  iteration 0 trained for longer, beside playing on: figure 4
    share-0.5                 iteration 0 trained on a share of the prompts: figure 5
    sft-lr-0.001-share-0.5    and θ_0 fine-tuned on the same share, for as many epochs

Each lies in runs/<lineage>/controls/<name>/{train,model,eval/<suite>}, DPO's with {pairs,scores} of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from spin_core.config.base import at
from spin_core.config.controls import DpoConfig
from spin_core.config.run import RunConfig
from spin_core.lineage.lineage import Lineage
from spin_core.store.records import IterationRecord, TrainRun

Method = Literal["sft-steps", "sft-tokens", "dpo", "spin-dpo", "longer", "sizes"]

TIMING = "log/timing.jsonl"
"""In a training's folder: what each step took, and its tokens."""


@dataclass(frozen=True)
class Control:
    """One training beside the game."""

    name: str
    """Its folder below `controls`."""
    method: Method
    label: str
    """What it is, in the same words for every seed."""
    teaches: Literal["prompts", "pairs", "preferences"]
    """What it learns from: the SFT data, the pairs of iteration 0, or people's preferences."""
    after: int = 0
    """The version that it starts from, which is DPO's reference too."""
    x: float = 0.0
    """Where it stands in a figure: epochs, or the share of the prompts."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of training that are not the player's own in iteration 0."""
    steps: int | None = None
    tokens: int | None = None
    share: float | None = None


def plan(game: Lineage, records: Sequence[IterationRecord]) -> list[Control]:
    """The trainings that the configuration asks for, beside a game of these iterations."""
    asked, epochs = game.config.controls, at(game.config.train.epochs, 0)
    steps = sum(record.train.steps for record in records)
    rates, found = sft_rates(game.config), list[Control]()
    for rate in rates if asked.sft_continued else ():
        name, label = f"sft-lr-{rate:g}-steps-{steps}", f"SFT, equal steps, lr {rate:g}"
        found.append(Control(name, "sft-steps", label, "prompts", changes=sft(rate), steps=steps))
    for rate in rates if asked.sft_tokens else ():
        tokens = sum(tokens_trained(record.train) for record in records)
        name, label = f"sft-lr-{rate:g}-tokens-{tokens}", f"SFT, equal tokens, lr {rate:g}"
        found.append(Control(name, "sft-tokens", label, "prompts", changes=sft(rate), tokens=tokens))
    if asked.dpo is not None:
        name = dpo_name(game.config, asked.dpo, steps)
        equal = steps if asked.dpo.equal_steps else None
        found.append(Control(name, "dpo", "DPO", "preferences", changes=dpo(game.config, asked.dpo), steps=equal))
    if asked.dpo is not None and asked.dpo_after:
        last = records[-1].player.t
        name = f"spin-{last}-{dpo_name(game.config, asked.dpo.model_copy(update={'equal_steps': False}), steps)}"
        changes = dpo(game.config, asked.dpo)
        found.append(Control(name, "spin-dpo", f"SPIN, θ_{last}, then DPO", "preferences", last, changes=changes))
    for times in asked.longer:
        changes, x = {"epochs": times * epochs}, times * epochs
        found.append(Control(f"epochs-{x}", "longer", f"iteration 0, {x} epochs", "pairs", x=x, changes=changes))
    for share in asked.shares:
        label = f"SPIN, iteration 0, {share:.0%} of prompts"
        found.append(Control(f"share-{share:g}", "sizes", label, "pairs", x=share, share=share))
    for rate in rates if asked.shares else ():
        for share in (*asked.shares, 1.0):
            part = None if share == 1 else share
            name, label = f"sft-lr-{rate:g}-share-{share:g}", f"SFT, {share:.0%} of prompts, lr {rate:g}"
            found.append(Control(name, "sizes", label, "prompts", x=share, changes=sft(rate), share=part))
    return found


def sft_rates(config: RunConfig) -> tuple[float, ...]:
    """The peak learning rates of continued fine-tuning: those named, or the player's own."""
    return config.controls.sft_learning_rate or (at(config.train.learning_rate, 0),)


def sft(learning_rate: float) -> dict[str, Any]:
    """What makes a training fine-tuning on the real responses."""
    return {"loss": "sft", "learning_rate": learning_rate}


def dpo(config: RunConfig, settings: DpoConfig) -> dict[str, Any]:
    """What makes a training DPO: the logistic loss on preferences, with nothing beside it."""
    return {
        "loss": "logistic",
        "beta": settings.beta,
        "learning_rate": dpo_rate(config, settings),
        "epochs": settings.epochs,
        "nll_weight": 0.0,
        "anchor": 0.0,
    }


def dpo_rate(config: RunConfig, settings: DpoConfig) -> float:
    """DPO's peak learning rate: its own, or the player's."""
    return settings.learning_rate or at(config.train.learning_rate, 0)


def dpo_name(config: RunConfig, settings: DpoConfig, steps: int) -> str:
    """`dpo-beta-0.1-lr-5e-07-epochs-1`."""
    long = f"steps-{steps}" if settings.equal_steps else f"epochs-{settings.epochs}"
    return f"dpo-beta-{settings.beta:g}-lr-{dpo_rate(config, settings):g}-{long}"


def tokens_trained(train: TrainRun) -> int:
    """Tokens of prompts and responses that a training saw, a prompt counted for each of its responses."""
    return sum(json.loads(line)["tokens"] for line in (train.path / TIMING).read_text("utf-8").splitlines())
