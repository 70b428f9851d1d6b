"""Training on several devices, or with memory shared out: a `Stepper` on DeepSpeed's ZeRO.

Stage 1 shares out the optimizer's state among the ranks, 2 the gradients too, 3 the weights too; stage 0 nothing.
Whatever the stage, the state is told and put back whole, by the parameters' names, so that a training may go on under
another stage, with another number of ranks, or on one device without DeepSpeed.

Each rank begins with the whole model, which stage 3 then cuts up: it must fit a device once, in its own precision.
Weights, gradients and the optimizer's state together need not.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from spin_core.config.train import TrainConfig
from spin_core.errors import ConfigError
from spin_core.models.files import save_model
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import Rows
from spin_core.models.vocabulary_loss import ItemLosses
from spin_core.runtime.ranks import Ranks
from spin_core.training.deepspeed_config import MISSING, stage_of, zero_settings
from spin_core.training.optim import optimizer_of


class Zero:
    """The `Stepper` of ranks that share a model. The process group must be there already."""

    def __init__(self, logps: ResponseLogps, config: TrainConfig, ranks: Ranks) -> None:
        device, dtype = logps.model.device.type, str(logps.model.dtype).removeprefix("torch.")
        settings = zero_settings(config, dtype)
        self.deepspeed, self.ranks, self.stage = import_deepspeed(device), ranks, stage_of(settings)
        named = [(name, weight) for name, weight in logps.model.named_parameters() if weight.requires_grad]
        self.names, self.weights = [name for name, _ in named], [weight for _, weight in named]
        self.inner = optimizer_of([self.weights], config)
        self.config, self.tools, self.steps = config, self.deepspeed.utils, 0
        with silence():
            self.deepspeed.init_distributed()
            self.engine = self.deepspeed.initialize(
                model=logps, optimizer=self.inner, model_parameters=self.weights, config=settings
            )[0]
        self.network: ResponseLogps = self.engine.module
        if self.stage == 3 and logps.direct:
            # Its weights are read without calling it, so DeepSpeed must be told to fetch them.
            head: Any = logps.model.get_output_embeddings()
            for weight in head.parameters():
                self.deepspeed.zero.register_external_parameter(logps, weight)
        self.begin()

    def logps(self, rows: Rows) -> Tensor:
        """Of each response, (S,)."""
        found: Tensor = self.engine(rows)
        return found

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """Their sum, and what they read."""
        found: tuple[Tensor, Tensor] = self.engine(rows, losses)
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient, summed over the ranks."""
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over the ranks.
        self.engine.backward(loss * self.ranks.size)

    def step(self, learning_rate: float) -> Tensor:
        """Clip, move the weights, forget the gradient; the norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.stage == 0 and self.inner is self.engine.optimizer:
            norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        self.engine.step()
        self.steps += 1
        found = self.engine.get_global_grad_norm() if norm is None else norm
        return torch.as_tensor(found, dtype=torch.float32, device=self.weights[0].device).detach()

    def tensors(self) -> dict[str, Tensor]:
        """This rank's share: every so manyth parameter, whole. All ranks gather each."""
        found: dict[str, Tensor] = {}
        for index, name in enumerate(self.names):
            keep = index % self.ranks.size == self.ranks.rank
            for key in ("weight", *self.keys):
                whole = self.whole(index, key)
                if keep:
                    found[f"{key}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True)
            if keep:
                found[f"step/{name}"] = torch.tensor(float(self.steps))
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what the `tensors` of all ranks gave, and the model's weights with it."""
        for index, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            for key in ("weight", *self.keys):
                self.put(index, key, tensors[f"{key}/{name}"].to(weight.device, torch.float32))
            with self.gathered(weight):
                weight.copy_(tensors[f"weight/{name}"])
            self.steps = int(tensors[f"step/{name}"].item())
        for state in self.inner.state.values():
            state["step"].fill_(self.steps)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads. Rank 0 writes, and holds the whole model on its CPU."""
        model = self.network.model
        whole: dict[str, Tensor] = {}
        for weight, names in shared_names(model).items():
            with self.gathered(weight):
                if self.ranks.first:
                    copy = weight.detach().to("cpu", copy=True)
                    whole |= dict.fromkeys(names, copy)
        if self.ranks.first:
            whole |= {name: value for name, value in model.state_dict().items() if name not in whole}
            save_model(model, tokenizer, folder, whole)
        self.ranks.wait()

    @property
    def keys(self) -> list[str]:
        """The optimizer's state of a weight, by torch's names; its count of steps is the same for all."""
        state = next(iter(self.inner.state.values()))
        return [key for key in state if key != "step"]

    def masters(self) -> list[Tensor]:
        """The float32 tensors that this rank's optimizer moves."""
        outer = self.engine.optimizer
        if self.stage == 3:
            return list(outer.fp32_partitioned_groups_flat)
        return [weight for group in outer.param_groups for weight in group["params"]]

    @torch.no_grad()
    def begin(self) -> None:
        """Make the optimizer's state as torch would in the first step, so that there is one to load into."""
        self.inner.state.clear()
        for master in self.masters():
            kept, master.grad = master.grad, torch.zeros_like(master)
            probe = optimizer_of([[master]], self.config)
            probe.step()  # at rate zero
            master.grad = kept
            self.inner.state[master] = probe.state[master]
            self.inner.state[master]["step"].zero_()
        if self.stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def whole(self, index: int, key: str) -> Tensor:
        """The master or a state of a weight, whole, on every rank."""
        if self.stage == 0:
            master = self.masters()[index]
            return master if key == "weight" else self.inner.state[master][key]
        found: Tensor
        if key == "weight":
            found = self.tools.safe_get_full_fp32_param(self.weights[index])
        else:
            found = self.tools.safe_get_full_optimizer_state(self.weights[index], key)
        return found

    def put(self, index: int, key: str, value: Tensor) -> None:
        """Keep this rank's part of the whole master or state of a weight."""
        weight: Any = self.weights[index]
        if self.stage == 0:
            self.whole(index, key).copy_(value)
        elif self.stage < 3 and key == "weight":
            self.tools.safe_set_full_fp32_param(weight, value)
        elif self.stage < 3:
            self.tools.safe_set_full_optimizer_state(weight, value, key)
        else:
            # The call that takes the whole value fails where the ranks' parts are not equal.
            part = weight.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, part * self.ranks.size - value.numel()))
            mine = padded.narrow(0, part * self.ranks.rank, part)
            if key == "weight":
                self.tools.safe_set_local_fp32_param(weight, mine)
            else:
                self.tools.safe_set_local_optimizer_state(weight, mine, key)

    @contextlib.contextmanager
    def gathered(self, weight: Tensor) -> Iterator[None]:
        """While this lasts, the weight is whole on every rank; what rank 0 makes of it, all keep."""
        if self.stage < 3:
            yield
            return
        with self.deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            yield


def shared_names(model: nn.Module) -> dict[Tensor, list[str]]:
    """All names of each weight: tied ones have several."""
    found: dict[Tensor, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        found.setdefault(weight, []).append(name)
    return found


def import_deepspeed(device: str) -> Any:
    """The package, on the accelerator that is asked for. `ConfigError` if it is not there."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(MISSING) from error
    # Gloo does what this one does, without a minute of compiling before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls torch by names that are on their way out, in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """DeepSpeed prints what it sets up, and warns of optimizers that it has not been tested with; ours are."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
