"""Gradients of the vocabulary's weights that are added where they end, against autograd's."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig

from spin_core.config.train import TrainConfig
from spin_core.data.sequences import Sequences
from spin_core.models.logps import ResponseLogps
from spin_core.models.packing import padded_rows
from spin_core.models.vocabulary_loss import ItemLosses
from spin_core.training.optim import SingleDeviceStepper
from tests.support.models.attention_families import model_of
from tests.support.models.wide_model import WIDE

SEQUENCES = Sequences.of([[5, 6, 0], [5, 6, 0], [9, 9], [9, 9]], [[20, 21, 2], [20], [0, 24, 9, 9], [30, 2]])
TOKENS_PB = np.array([[3, 4], [1, 2]])
HEADS = {
    "untied": LlamaConfig(**WIDE),
    "tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "tied, another family": GPT2Config(**{**WIDE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "logits that are not linear": Gemma2Config(
        **WIDE, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"
    ),
    "an embedding that does more than look up": Gemma3TextConfig(**WIDE, head_dim=8),
}


class Autograds(SingleDeviceStepper):
    """The same optimizer; the model keeps autograd's way."""

    def __init__(self, network: ResponseLogps, config: TrainConfig) -> None:
        super().__init__(network, config)
        network.add_gradients_to({})
        embedding = network.model.get_input_embeddings()
        embedding.__dict__.pop("forward", None)


def losses(logps_Pb: torch.Tensor, _: slice) -> torch.Tensor:
    return F.softplus(logps_Pb[1] - 0.5 * logps_Pb[0])


def passes(stepper: SingleDeviceStepper) -> None:
    """Two parts of a batch: all of it, and half."""
    for chosen, tokens in ((np.array([0, 2, 1, 3]), TOKENS_PB), (np.array([0, 1]), TOKENS_PB[:, :1])):
        loss, _ = stepper.loss(padded_rows(SEQUENCES, chosen), ItemLosses(tokens, losses))
        stepper.backward(loss, last=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_they_equal_autograds_over_the_parts_of_a_batch(name, dtype):
    model = model_of(HEADS[name]).to(dtype)
    direct = SingleDeviceStepper(ResponseLogps(copy.deepcopy(model)), TrainConfig())
    autograd = Autograds(ResponseLogps(model), TrainConfig())
    for stepper in (direct, autograd):
        passes(stepper)
    room = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for weight, master, expected in zip(direct.names, direct.masters, autograd.masters, strict=True):
        torch.testing.assert_close(
            master.grad, expected.grad, msg=lambda message, weight=weight: f"{weight}: {message}", **room
        )


class Matrices(TorchDispatchMode):
    """Counts the new tensors as large as the vocabulary's weights."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {tensor.data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.elements and tensor.data_ptr() not in given:
                self.count += 1
        return result


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_no_second_matrix_of_their_size_is_made(name):
    model = model_of(LlamaConfig(**{**WIDE, "vocab_size": 5000}, tie_word_embeddings=name == "tied"))
    counts = {}
    for kind in (SingleDeviceStepper, Autograds):
        stepper = kind(ResponseLogps(copy.deepcopy(model), chunk_logits=5000), TrainConfig())
        with Matrices(5000 * 16) as seen:
            passes(stepper)
        counts[kind] = seen.count
    assert counts[SingleDeviceStepper] == (1 if name == "tied" else 2), "the gradients themselves"
    assert counts[Autograds] >= counts[SingleDeviceStepper] + 2


def test_a_weight_that_does_not_train_gets_none():
    model = model_of(LlamaConfig(**WIDE))
    model.get_input_embeddings().weight.requires_grad_(False)
    model.lm_head.weight.requires_grad_(False)
    passes(SingleDeviceStepper(ResponseLogps(model), TrainConfig()))
    assert model.get_input_embeddings().weight.grad is None
    assert model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad is not None


def test_a_loss_that_is_scaled_afterwards_is_rejected():
    stepper = SingleDeviceStepper(ResponseLogps(model_of(LlamaConfig(**WIDE))), TrainConfig())
    loss, _ = stepper.loss(padded_rows(SEQUENCES, np.array([0, 2, 1, 3])), ItemLosses(TOKENS_PB, losses))
    with pytest.raises(RuntimeError, match="added for a loss of slope 1"):
        (2 * loss).backward()
