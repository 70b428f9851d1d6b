"""Training on several ranks, or with memory divided among them: a `Stepper` on DeepSpeed's ZeRO.

Stage 1 divides the optimizer's state among the ranks, 2 the gradients too, 3 the weights too; stage 0 divides nothing.
In every stage the state is saved and loaded whole, by the parameters' names, so a training may go on with another
stage, with another number of ranks, or on one device without DeepSpeed.

Each rank starts with the whole model, which stage 3 then divides: it must fit on a device once, in its own precision.
Weights, gradients and the optimizer's state together need not fit.
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
from spin_core.training.optim import make_optimizer


class Zero:
    """The `Stepper` of several ranks. Their process group must exist."""

    def __init__(self, logps: ResponseLogps, config: TrainConfig, ranks: Ranks) -> None:
        device, dtype = logps.model.device.type, str(logps.model.dtype).removeprefix("torch.")
        settings = zero_settings(config, dtype)
        self.deepspeed, self.ranks, self.stage = _import_deepspeed(device), ranks, stage_of(settings)
        named = [(name, weight) for name, weight in logps.model.named_parameters() if weight.requires_grad]
        self.names, self.weights = [name for name, _ in named], [weight for _, weight in named]
        self.inner = make_optimizer([self.weights], config)
        self.config, self.tools, self.steps = config, self.deepspeed.utils, 0
        with _quiet():
            self.deepspeed.init_distributed()
            self.engine = self.deepspeed.initialize(
                model=logps, optimizer=self.inner, model_parameters=self.weights, config=settings
            )[0]
        self.network: ResponseLogps = self.engine.module
        if self.stage == 3 and logps.direct:
            # The loss reads its weights without calling it, so DeepSpeed must know that it has to gather them.
            head: Any = logps.model.get_output_embeddings()
            for weight in head.parameters():
                self.deepspeed.zero.register_external_parameter(logps, weight)
        self._create_optimizer_state()

    def logps(self, rows: Rows) -> Tensor:
        """See `Stepper.logps`."""
        logps_S: Tensor = self.engine(rows)
        return logps_S

    def loss(self, rows: Rows, losses: ItemLosses) -> tuple[Tensor, Tensor]:
        """See `Stepper.loss`."""
        loss_and_logps: tuple[Tensor, Tensor] = self.engine(rows, losses)
        return loss_and_logps

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the loss's gradient, summed over the ranks."""
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over the ranks.
        self.engine.backward(loss * self.ranks.size)

    def discard_gradient(self) -> bool:
        """See `Stepper.discard_gradient`. The other ranks wait within this batch, so only a new start helps."""
        return False

    def step(self, learning_rate: float) -> Tensor:
        """See `Stepper.step`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.stage == 0 and self.inner is self.engine.optimizer:
            norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        self.engine.step()
        self.steps += 1
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return torch.as_tensor(norm, dtype=torch.float32, device=self.weights[0].device).detach()

    def tensors(self) -> dict[str, Tensor]:
        """See `Stepper.tensors`. Parameter i belongs to the share of rank i mod size; all ranks gather each one."""
        share: dict[str, Tensor] = {}
        for index, name in enumerate(self.names):
            keep = index % self.ranks.size == self.ranks.rank
            for key in ("weight", *self._state_keys):
                whole = self._whole(index, key)
                if keep:
                    share[f"{key}/{name}"] = whole.detach().to("cpu", torch.float32, copy=True)
            if keep:
                share[f"step/{name}"] = torch.tensor(float(self.steps))
        return share

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore masters and optimizer, and set the model's weights."""
        for index, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            for key in ("weight", *self._state_keys):
                self._set(index, key, tensors[f"{key}/{name}"].to(weight.device, torch.float32))
            with self._gathered(weight):
                weight.copy_(tensors[f"weight/{name}"])
            self.steps = int(tensors[f"step/{name}"].item())
        for state in self.inner.state.values():
            state["step"].fill_(self.steps)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `from_pretrained` loads. Rank 0 writes, and holds the whole model on its CPU."""
        model = self.network.model
        whole: dict[str, Tensor] = {}
        for weight, names in _names_by_weight(model).items():
            with self._gathered(weight):
                if self.ranks.first:
                    copy = weight.detach().to("cpu", copy=True)
                    whole |= dict.fromkeys(names, copy)
        if self.ranks.first:
            whole |= {name: value for name, value in model.state_dict().items() if name not in whole}
            save_model(model, tokenizer, folder, whole)
        self.ranks.wait()

    @property
    def _state_keys(self) -> list[str]:
        """torch's names of the optimizer's state of a weight, without the count of steps, which all share."""
        state = next(iter(self.inner.state.values()))
        return [key for key in state if key != "step"]

    def _masters(self) -> list[Tensor]:
        """The float32 tensors that this rank's optimizer moves."""
        outer = self.engine.optimizer
        if self.stage == 3:
            return list(outer.fp32_partitioned_groups_flat)
        return [weight for group in outer.param_groups for weight in group["params"]]

    @torch.no_grad()
    def _create_optimizer_state(self) -> None:
        """Create the optimizer's state as torch does in the first step, so that `load` has tensors to write to."""
        self.inner.state.clear()
        for master in self._masters():
            kept, master.grad = master.grad, torch.zeros_like(master)
            probe = make_optimizer([[master]], self.config)
            probe.step()  # at rate zero
            master.grad = kept
            self.inner.state[master] = probe.state[master]
            self.inner.state[master]["step"].zero_()
        if self.stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _whole(self, index: int, key: str) -> Tensor:
        """A weight's master (key `weight`) or a tensor of its state, whole, on every rank."""
        if self.stage == 0:
            master = self._masters()[index]
            return master if key == "weight" else self.inner.state[master][key]
        tensor: Tensor
        if key == "weight":
            tensor = self.tools.safe_get_full_fp32_param(self.weights[index])
        else:
            tensor = self.tools.safe_get_full_optimizer_state(self.weights[index], key)
        return tensor

    def _set(self, index: int, key: str, value: Tensor) -> None:
        """Set this rank's part of a weight's master or state from the whole tensor."""
        weight: Any = self.weights[index]
        if self.stage == 0:
            self._whole(index, key).copy_(value)
        elif self.stage < 3 and key == "weight":
            self.tools.safe_set_full_fp32_param(weight, value)
        elif self.stage < 3:
            self.tools.safe_set_full_optimizer_state(weight, value, key)
        else:
            # DeepSpeed's call for the whole value fails where the ranks' parts have different sizes.
            size = weight.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, size * self.ranks.size - value.numel()))
            local = padded.narrow(0, size * self.ranks.rank, size)
            if key == "weight":
                self.tools.safe_set_local_fp32_param(weight, local)
            else:
                self.tools.safe_set_local_optimizer_state(weight, local, key)

    @contextlib.contextmanager
    def _gathered(self, weight: Tensor) -> Iterator[None]:
        """Within this context the weight is whole on every rank; a change by rank 0 reaches all ranks."""
        if self.stage < 3:
            yield
            return
        with self.deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            yield


def _names_by_weight(model: nn.Module) -> dict[Tensor, list[str]]:
    """All names of each weight: tied ones have several."""
    names_of: dict[Tensor, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(weight, []).append(name)
    return names_of


def _import_deepspeed(device: str) -> Any:
    """The package deepspeed, set to this kind of device. Raises `ConfigError` if it is not installed."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(MISSING) from error
    # Gloo does the same without a minute of compiling before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls deprecated functions of torch in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what DeepSpeed prints on setup, and its warning about untested optimizers, which tests here cover."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
