"""The ways of training that `train.py` compares, each in its own process.

Spin's ways are the whole `train` phase with its journal and loader; TRL's are its `DPOTrainer.train`.
"""

import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RATE, BETA, SEED, LONGEST = 1e-4, 0.1, 0, 1024


@dataclass(frozen=True)
class Model:
    """A Llama to train."""

    shape: dict[str, Any]
    vocabulary: int = 32_000
    gpu: bool = False
    """On a GPU in bfloat16, with float32 masters; else on the CPU in float32."""
    in_memory: bool = False
    """Its weights are made on the GPU and never written; activations are recomputed. Our steps alone are measured."""

    @property
    def config(self) -> Any:
        """The settings as a phase gets them."""
        from spin_core.config.model import ModelConfig

        return ModelConfig(device="cuda", dtype="bfloat16") if self.gpu else ModelConfig(device="cpu")


MODELS = {
    "15m": Model({"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}),
    "42m": Model({"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}),
    # The shapes of Llama 3.2 and 3.1.
    "1b": Model(
        {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        128_256, gpu=True,
    ),
    "8b": Model(
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "tie_word_embeddings": False,
        },
        128_256, gpu=True, in_memory=True,
    ),
}  # fmt: skip

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, prompts not shared": {"prefix_sharing": False},
    "ours, padded rows": {"packing": False},
    "ours, all logits": {"response_logits": False},
    "ours, opponent at every step": {"cached_scores": False},
    "ours, no loader": {"prefetch": False},
}
"""Each saving switched off in turn, by settings of `train.speed`."""
OURS_ON_GPU: dict[str, dict[str, Any]] = {
    "ours, layers not compiled": {"compile": False},
    "ours, SDPA on gathered sequences": {"attention": "sdpa"},
}
"""Further choices that only a GPU has."""
MORE: dict[str, dict[str, Any]] = {"ours, layers compiled": {"compile": True}}
"""No saving of ours on a CPU; `--more` measures it there too."""
THEIRS: dict[str, dict[str, Any]] = {
    "TRL, cached, 1 pair a pass": {"per_device_train_batch_size": 1, "precompute_ref_log_probs": True},
    "TRL, cached, 2 pairs a pass": {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True},
    "TRL as the paper: 8 padded, reference at every step": {"per_device_train_batch_size": 8},
}
EIGHT = {"per_device_train_batch_size": 8, "precompute_ref_log_probs": True}
THEIRS_ON_GPU: dict[str, dict[str, Any]] = {
    "TRL, cached, 8 pairs a pass, FlashAttention": EIGHT,
    "TRL, cached, 8 pairs a pass, FlashAttention, Liger": {**EIGHT, "use_liger_kernel": True},
    "TRL as the paper: 8 padded, reference at every step, FlashAttention": {"per_device_train_batch_size": 8},
    "TRL, cached, 2 pairs a pass, FlashAttention, Liger": {
        **EIGHT, "per_device_train_batch_size": 2, "use_liger_kernel": True,
    },
}  # fmt: skip
"""In bfloat16 by autocast over float32 weights: Spin's precision."""


def ways_of(model: Model, more: bool) -> list[str]:
    """The names of all ways that make sense for a model."""
    if model.in_memory:
        return ["ours", "ours, layers not compiled"]
    if model.gpu:
        return ["ours", *THEIRS_ON_GPU, *OURS_ON_GPU, *(name for name in OURS if name != "ours")]
    return [*OURS, *(MORE if more else ()), *THEIRS]


def train_with_spin(folder: Path, model: Model, change: dict[str, Any], batch_size: int, most: int) -> dict[str, Any]:
    """Our phase; seconds of each step, and what the first two measured."""
    from spin_core.store import artifacts, identity
    from spin_core.store.records import ModelVersion, PairDataset, ScoredPairs
    from spin_core.store.training_log import METRICS, TIMING, read_rows
    from tests.support.lineages.small_jobs import run_job, train_job

    pairs = PairDataset(
        path=folder / "pairs",
        digest=identity.digest_folder(folder / "pairs")[0],
        t=0,
        rows_in=0,
        rows=0,
        drops={},
        mix={},
    )
    scores = artifacts.read_record(folder / "scores", ScoredPairs)
    start = ModelVersion.model_validate_json((folder / "version.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        job = train_job(
            Path(scratch), start, pairs, scores, model.config, beta=BETA, learning_rate=RATE, epochs=1,
            batch_size=batch_size, micro_batch_tokens=most, lr_schedule="constant", warmup=0.0,
            gradient_checkpointing=model.in_memory, speed={"compile": model.gpu, **change},
        )  # fmt: skip
        run_job(job)
        rows, timing = read_rows(job.output / METRICS), read_rows(job.output / TIMING)
    return {
        "seconds": [row["seconds"] + row["wait"] for row in timing],
        "wait": sum(row["wait"] for row in timing[1:]),
        "loss": [row["loss"] for row in rows],
        "logps": rows[0]["logps/real"],
    }


def ours_in_memory(folder: Path, change: dict[str, Any], batch_size: int, most: int) -> dict[str, Any]:
    """The trainer's steps on a model that exists only in the GPU's memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from spin_core.config.train import TrainConfig
    from spin_core.data.batches import DataOrder
    from spin_core.data.files.token_file import TokenFile
    from spin_core.data.sequences import Sequences, read_token_ids
    from spin_core.models.logps import response_logps, score_sequences
    from spin_core.runtime.ranks import Ranks
    from spin_core.training.gradient import forward_backward
    from spin_core.training.objective import objective_of
    from spin_core.training.optim import SingleDeviceStepper
    from spin_core.training.player import prepare
    from spin_core.training.train_data import TrainData, batch_of

    config = TrainConfig(
        beta=BETA, batch_size=batch_size, micro_batch_tokens=most, gradient_checkpointing=True,
        speed={"compile": True, **change},
    )  # fmt: skip
    settings = AutoConfig.from_pretrained(folder / "model")
    torch.manual_seed(SEED)
    with torch.device("cuda"):
        network = response_logps(AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16), config.speed)
    columns = read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    prompts, real, generated = columns
    sequences = Sequences.of(prompts * 2, real + generated)
    reference = score_sequences(network, sequences, most, np.tile(np.arange(len(prompts)), 2)).view(2, -1)
    prepare(network.model, config)
    tokens = TokenFile.write(
        folder / "tokens", folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids"
    )
    data, stepper = TrainData(tokens, np.arange(len(tokens)), reference), SingleDeviceStepper(network, config)
    order, device = DataOrder(len(prompts), batch_size, SEED), torch.device("cuda")
    seconds, loss, logps = [], [], 0.0
    for step in range(order.steps_in_epoch):
        batch = batch_of(data, order.batch(step), Ranks(), most, packed=network.packed, prefix_sharing=True)
        began = time.monotonic()
        measured = forward_backward(batch, objective_of(config, 0), stepper, Ranks(), device).metrics
        values = dict(zip(measured, torch.stack([*measured.values(), stepper.step(RATE)]).tolist(), strict=False))
        seconds.append(time.monotonic() - began)
        loss.append(values["loss"])
        logps = logps or values["logps/real"]
    return {"seconds": seconds, "loss": loss, "logps": logps}


def theirs(folder: Path, model: Model, change: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """TRL's trainer over the same batches in the same order."""
    warnings.simplefilter("ignore")
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from spin_core.data.batches import DataOrder
    from spin_core.data.sequences import read_token_ids

    columns = read_token_ids(folder / "pairs" / "pairs.parquet", "prompt_ids", "real_ids", "generated_ids")
    order = DataOrder(np.arange(len(columns[0])), batch_size, SEED)
    rows = [i for step in range(order.steps_in_epoch) for i in order.batch(step)]

    def text(ids: Any) -> str:
        return " ".join("</s>" if i == 2 else f"w{i}" for i in ids)

    data = [
        {"prompt": text(columns[0][i]), "chosen": " " + text(columns[1][i]), "rejected": " " + text(columns[2][i])}
        for i in rows
    ]
    seconds: list[float] = []
    began = 0.0

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal began
            began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if model.gpu:
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - began)

    change = dict(change)
    attention = change.pop("attention", use_flash_attention() if model.gpu else "sdpa")
    size = change["per_device_train_batch_size"]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                folder / "model", dtype=torch.float32, attn_implementation=attention
            ),
            args=trl.DPOConfig(
                output_dir=scratch, beta=BETA, loss_type=["sigmoid"], use_cpu=not model.gpu, bf16=model.gpu,
                report_to="none", gradient_accumulation_steps=batch_size // size,
                gradient_checkpointing=model.in_memory, learning_rate=RATE, lr_scheduler_type="constant",
                optim="rmsprop", num_train_epochs=1, logging_steps=1, max_length=None,
                train_sampling_strategy="sequential", disable_tqdm=True, save_strategy="no", seed=SEED, **change,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            callbacks=[Clock()],
        )  # fmt: skip
        losses, plain = [], trainer.compute_loss

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            losses.append((output[0] if isinstance(output, tuple) else output).detach())
            return output

        trainer.compute_loss = compute_loss
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "logps/chosen" in entry]
    passes = batch_size // size
    values = [float(loss) for loss in losses]
    scale = passes if max(values[:passes]) < 0.9 * np.log(2) else 1  # some versions divide before, some after
    return {
        "seconds": seconds,
        "loss": [float(np.mean(values[i : i + passes])) * scale for i in range(0, len(values), passes)],
        "logps": history[0]["logps/chosen"],
    }


def use_flash_attention() -> str:
    """Teach transformers the FlashAttention kernel that torch brings, as its own integration uses the package's.

    The package itself builds for an hour from source. Padding is taken out before the kernel and put back behind it.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    from spin_core.models.attention import varlen_kernel

    kernel = varlen_kernel()
    assert kernel is not None, "this torch has no variable-length attention"

    def attend(
        _module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Any, None]:
        rows, _, width, _ = query.shape
        parts = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        if query.dtype == torch.float32:  # under autocast, rotation leaves float32
            parts = [x.to(torch.bfloat16) for x in parts]
        if attention_mask is None:
            kept = None
            lengths = torch.full((rows,), width, device=query.device)
        else:
            kept = attention_mask.flatten().nonzero().squeeze(1)
            lengths = attention_mask.sum(1)
            parts = [x.index_select(0, kept) for x in parts]
        bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        attention = kernel(*parts, bounds, bounds, width, width, scale=scaling, window_size=(-1, 0))
        if kept is not None:
            attention = attention.new_zeros((rows * width, *attention.shape[1:])).index_copy(0, kept, attention)
        return attention.unflatten(0, (rows, width)), None

    # A name with `flash` in it would be taken for a package.
    AttentionInterface.register("varlen_of_torch", attend)
    AttentionMaskInterface.register("varlen_of_torch", flash_attention_mask)
    return "varlen_of_torch"


def peak_flops(model: Model) -> float:
    """The multiplications and additions a second of the fastest product found here."""
    import torch

    n = 8192 if model.gpu else 2048
    where: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if model.gpu else {}
    one, other = torch.randn(n, n, **where), torch.randn(n, n, **where)
    wait: Callable[[], None] = torch.cuda.synchronize if model.gpu else lambda: None
    best = float("inf")
    for _ in range(24 if model.gpu else 12):
        wait()
        began = time.perf_counter()
        one @ other
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def child(name: str, folder: Path, shape: str, batch_size: int, micro_batch_tokens: int) -> None:
    """One way of training, in this process; prints its measurements as JSON."""
    import torch

    model, ways_of_spin = MODELS[shape], OURS | OURS_ON_GPU | MORE
    if name in ways_of_spin:
        options = (ways_of_spin[name], batch_size, micro_batch_tokens)
        result = ours_in_memory(folder, *options) if model.in_memory else train_with_spin(folder, model, *options)
    else:
        result = theirs(folder, model, (THEIRS | THEIRS_ON_GPU)[name], batch_size)
    if model.gpu:
        result["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    else:
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["peak_flops"] = peak_flops(model)
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    child(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
