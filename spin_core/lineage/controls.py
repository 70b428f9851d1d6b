"""Controls: trainings that self-play is compared with, from the same θ_0 and in the same table.

    sft-lr-0.001-steps-96     continued fine-tuning of θ_0, for as many steps as the iterations took together
    sft-lr-0.001-tokens-8000  the same, for as many tokens
    dpo-beta-0.1-…            DPO of θ_0 (arXiv 2305.18290): the logistic loss on people's preferences
    spin-3-dpo-beta-0.1-…     DPO of the last version, θ_3: the paper's table 3
    epochs-6                  iteration 0 trained for longer instead of another iteration: figure 4
    share-0.5                 iteration 0 trained on a share of the prompts: figure 5
    sft-lr-0.001-share-0.5    and θ_0 fine-tuned on the same share, for as many epochs

Each is in runs/<lineage>/controls/<name>/{train,model,eval/<suite>}, DPO's also with {pairs,scores}. Their jobs are
in `control_jobs`.
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

Method = Literal["sft-steps", "sft-tokens", "dpo", "spin-dpo", "longer", "sizes", "temperature"]
"""What SPIN is compared with. `temperature` is θ_0 sampled at other temperatures, without training."""

TIMING = "log/timing.jsonl"
"""The file in a training's folder with the seconds and tokens of each step."""


@dataclass(frozen=True)
class Control:
    """One training to compare self-play with."""

    name: str
    """Its folder below `controls`."""
    method: Method
    label: str
    """A description that is the same for every seed."""
    learns_from: Literal["prompts", "pairs", "preferences"]
    """The SFT data, the pairs of iteration 0, or people's preferences."""
    after: int = 0
    """The version that it starts from, which is also DPO's reference."""
    x: float = 0.0
    """Its x coordinate in a figure: epochs, or the share of the prompts."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `train` that differ from the player's in iteration 0."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    tokens: int | None = None
    """Tokens to train on, instead of epochs."""
    share: float | None = None
    """The share of the prompts to train on; None for all."""


def plan(lineage: Lineage, records: Sequence[IterationRecord]) -> list[Control]:
    """The trainings that the configuration asks for, to compare with these iterations."""
    config, settings = lineage.config, lineage.config.controls
    steps = sum(record.train.steps for record in records)
    controls = _continued_sft(config, records, steps)
    if settings.dpo is not None:
        name, equal = _dpo_name(config, settings.dpo, steps), steps if settings.dpo.equal_steps else None
        changes = _dpo_changes(config, settings.dpo)
        controls.append(Control(name, "dpo", "DPO", "preferences", changes=changes, steps=equal))
        if settings.dpo_after:
            last, own_epochs = records[-1].player.t, settings.dpo.model_copy(update={"equal_steps": False})
            name, label = f"spin-{last}-{_dpo_name(config, own_epochs, steps)}", f"SPIN, θ_{last}, then DPO"
            controls.append(Control(name, "spin-dpo", label, "preferences", last, changes=changes))
    for times in settings.longer:
        epochs = times * at(config.train.epochs, 0)
        label = f"iteration 0, {epochs} epochs"
        controls.append(Control(f"epochs-{epochs}", "longer", label, "pairs", x=epochs, changes={"epochs": epochs}))
    return controls + _sizes(config)


def tokens_trained(train: TrainRun) -> int:
    """Tokens of prompts and responses that a training read. A prompt counts once for each of its responses."""
    return sum(json.loads(line)["tokens"] for line in (train.path / TIMING).read_text("utf-8").splitlines())


def _continued_sft(config: RunConfig, records: Sequence[IterationRecord], steps: int) -> list[Control]:
    """Fine-tuning of θ_0 for as many steps, and for as many tokens, as the iterations took."""
    controls = []
    for rate in _sft_rates(config) if config.controls.sft_continued else ():
        name, label = f"sft-lr-{rate:g}-steps-{steps}", f"SFT, equal steps, lr {rate:g}"
        controls.append(Control(name, "sft-steps", label, "prompts", changes=_sft_changes(rate), steps=steps))
    for rate in _sft_rates(config) if config.controls.sft_tokens else ():
        tokens = sum(tokens_trained(record.train) for record in records)
        name, label = f"sft-lr-{rate:g}-tokens-{tokens}", f"SFT, equal tokens, lr {rate:g}"
        controls.append(Control(name, "sft-tokens", label, "prompts", changes=_sft_changes(rate), tokens=tokens))
    return controls


def _sizes(config: RunConfig) -> list[Control]:
    """Iteration 0 on shares of the prompts, and fine-tuning of θ_0 on the same shares and on all prompts."""
    controls, shares = [], config.controls.shares
    for share in shares:
        label = f"SPIN, iteration 0, {share:.0%} of prompts"
        controls.append(Control(f"share-{share:g}", "sizes", label, "pairs", x=share, share=share))
    for rate in _sft_rates(config) if shares else ():
        for share in (*shares, 1.0):
            name, label = f"sft-lr-{rate:g}-share-{share:g}", f"SFT, {share:.0%} of prompts, lr {rate:g}"
            # All prompts are no share: the training keeps the identity that it would have without a comparison.
            of_prompts = None if share == 1 else share
            changes = _sft_changes(rate)
            controls.append(Control(name, "sizes", label, "prompts", x=share, changes=changes, share=of_prompts))
    return controls


def _sft_rates(config: RunConfig) -> tuple[float, ...]:
    """The peak learning rates of continued fine-tuning: those configured, or the player's."""
    return config.controls.sft_learning_rate or (at(config.train.learning_rate, 0),)


def _sft_changes(learning_rate: float) -> dict[str, Any]:
    """The settings that make a training fine-tuning on the real responses."""
    return {"loss": "sft", "learning_rate": learning_rate}


def _dpo_changes(config: RunConfig, settings: DpoConfig) -> dict[str, Any]:
    """The settings that make a training DPO: the logistic loss on preferences, without any other term."""
    return {
        "loss": "logistic",
        "beta": settings.beta,
        "learning_rate": _dpo_rate(config, settings),
        "epochs": settings.epochs,
        "nll_weight": 0.0,
        "anchor": 0.0,
    }


def _dpo_rate(config: RunConfig, settings: DpoConfig) -> float:
    """DPO's peak learning rate: the one configured, or the player's."""
    return settings.learning_rate or at(config.train.learning_rate, 0)


def _dpo_name(config: RunConfig, settings: DpoConfig, steps: int) -> str:
    """`dpo-beta-0.1-lr-5e-07-epochs-1`."""
    length = f"steps-{steps}" if settings.equal_steps else f"epochs-{settings.epochs}"
    return f"dpo-beta-{settings.beta:g}-lr-{_dpo_rate(config, settings):g}-{length}"
