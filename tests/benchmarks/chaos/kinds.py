"""The kinds of lineages that are killed: each is as small as it can be with every phase in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.config.generate import VllmConfig
from spin_core.runtime import interpreter

SETTINGS: dict[str, Any] = {
    "sft": {"hidden_size": 8, "intermediate_size": 16, "layers": 1, "heads": 2, "train": {"epochs": 1}},
    "prompts": {"sample": 48, "held_out": 8},
    "generate": {"shard_size": 8},
    "train": {"epochs": 2, "batch_size": 8, "save_every": 2, "learning_rate": 1e-3},
    "gate": {"rule": "always"},
    "evaluate": {"frontier": [], "exact": False, "main_metric": "heldout_nll", "headline": []},
    "metrics": {"sinks": []},
    "controls": {"sft_continued": False, "sft_learning_rate": [], "temperatures": []},
}
"""The demo with a model of some thousand weights and few rows."""


@dataclass(frozen=True)
class Kind:
    """A kind of lineage."""

    about: str
    changes: dict[str, Any]
    """What it has other than `SETTINGS`, section by section."""
    iterations: int = 1
    save_model: Callable[[Path], object] | None = None
    """Writes θ_0 into a folder; None where the recipe trains its own."""
    fits_one_process: bool = True
    """Whether all its phases can run in one process, in which an uninterrupted run is made with less CPU time."""
    is_installed: Callable[[], bool] = field(default=lambda: True)

    def settings(self, folder: Path) -> dict[str, Any]:
        """All settings; θ_0 is written into the folder if it is not there yet."""
        sections = dict(SETTINGS)
        for section, values in self.changes.items():
            sections[section] = {**sections.get(section, {}), **values}
        if self.save_model:
            model = folder / "model"
            if not model.exists():
                self.save_model(model)
            sections["model"] = {**sections.get("model", {}), "path": str(model)}
        return sections


def _save_tiny_llama(folder: Path) -> None:
    from tests.support.helpers import character_tokenizer, save_tiny_model

    save_tiny_model(folder, character_tokenizer())


def _save_model_for_vllm(folder: Path) -> None:
    from tests.support.models.vllm_models import save_model

    save_model(folder)


def _has_vllm() -> bool:
    return interpreter.vllm_python(VllmConfig()).exists()


CPU = {"device": "cpu"}

KINDS = {
    "demo": Kind("the demo's own model, with a control", {"controls": {"temperatures": [0.7]}}),
    "lora": Kind(
        "adapters, stacked on a Llama in a folder",
        {"model": CPU, "train": {"lora": {"rank": 2, "alpha": 4.0, "across": "stack"}}},
        iterations=2,
        save_model=_save_tiny_llama,
    ),
    "ranks": Kind(
        "two ranks train and score, ZeRO-2 over gloo",
        {"model": CPU, "train": {"speed": {"ranks": 2, "deepspeed": "zero2"}}},
        save_model=_save_tiny_llama,
        fits_one_process=False,
    ),
    "mixed": Kind(
        "a mixture of opponents, two answers to each prompt",
        {"generate": {"opponents": {"kind": "mixture"}, "answers": 2}},
        iterations=2,
    ),
    "vllm": Kind(
        "vLLM's CPU build answers",
        {
            "model": CPU,
            "generate": {"engine": "vllm", "max_new_tokens": 12, "vllm": {"speed": {"cache_gb": 0.0625}}},
        },
        save_model=_save_model_for_vllm,
        fits_one_process=False,
        is_installed=_has_vllm,
    ),
}
