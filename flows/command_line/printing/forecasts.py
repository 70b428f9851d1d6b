"""What `spin check --on` prints: memory, hours and money on a machine that is not here."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from flows.command_line.printing.console import console
from spin_core.config.run import RunConfig
from spin_core.errors import count
from spin_core.preflight.findings import size
from spin_core.preflight.machines.forecast import Forecast, Option
from spin_core.preflight.machines.inputs import Inputs
from spin_core.preflight.machines.profiles import Machine

PHASES = ("generating", "scoring", "training", "evaluating")


def print_forecast(forecast: Forecast, inputs: Inputs, config: RunConfig, price: float | None) -> None:
    """Print what fits, what each iteration of the cheapest way takes, and how to start it."""
    for line in _head(forecast, inputs, config):
        console.print(line, markup=False)
    console.print()
    console.print(_options(forecast))
    for lora, what in ((False, "all weights"), (True, "adapters (LoRA)")):
        option = forecast.cheapest(lora=lora)
        if option is not None:
            console.print(f"\n[bold]the cheapest that fits, {what}[/]")
            console.print(_iterations(option, forecast.machine, price))
            sets = " ".join(f"--set {name}" for name in option.sets(forecast.machine, config))
            console.print(f"[dim]settings[/]  {escape(sets) or 'as they are'}", soft_wrap=True)
    for line in _tail(forecast, config):
        console.print(f"\n{escape(line)}")


def _head(forecast: Forecast, inputs: Inputs, config: RunConfig) -> Iterator[str]:
    """The machine, the model and the texts."""
    machine, shape, texts = forecast.machine, forecast.shape, forecast.texts
    gpu = machine.gpu
    where = f"{machine.each} x {gpu.name}" + (f" on each of {machine.nodes} nodes" if machine.nodes > 1 else "")
    speed = f"{gpu.flops(shape.dtype) / 1e12:,.0f} TFLOP/s in {shape.dtype} and {gpu.bandwidth / 1e12:.2g} TB/s each"
    yield f"{config.recipe} on {where}: {speed}"
    lengths = f"{texts.prompt_tokens:.0f} and {texts.response_tokens:.0f} tokens" + (" (assumed)" * inputs.assumed)
    yield f"{shape.parameters:,} parameters; {texts.prompts:,} prompts; prompts and responses of {lengths}"
    if shape.dtype != config.model.dtype:
        yield f"{gpu.name} has no {config.model.dtype}: estimated with model.dtype={shape.dtype}"


def _options(forecast: Forecast) -> Table:
    """Memory and time of each way of training."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("training", "ZeRO", "recomputes", "tokens a pass", "memory a GPU", "fits", "hours"):
        table.add_column(name, justify="left" if name in ("training", "recomputes", "fits") else "right")
    for option in forecast.options:
        table.add_row(
            "LoRA" if option.lora else "all weights",
            str(option.stage),
            "yes" if option.recomputes else "no",
            f"{option.tokens:,}",
            size(option.bytes_each),
            "[green]yes[/]" if option.fits else "[red]no[/]",
            f"{option.seconds / 3600:,.2f}" if option.fits else "–",
        )
    return table


def _iterations(option: Option, machine: Machine, price: float | None) -> Table:
    """Hours of each iteration by phase, GPU hours, and money."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("iteration")
    for name in (*PHASES, "hours", "GPU hours", *(["money"] if price is not None else [])):
        table.add_column(name, justify="right")
    names = [*map(str, range(len(option.iterations))), "all"]
    for name, parts in zip(names, [*option.iterations, _total(option)], strict=True):
        hours = sum(parts.values()) / 3600
        money = [f"{hours * machine.gpus * price:,.2f}"] if price is not None else []
        phases = [f"{parts[phase] / 3600:.2f}" for phase in PHASES]
        table.add_row(name, *phases, f"{hours:.2f}", f"{hours * machine.gpus:,.1f}", *money)
    return table


def _total(option: Option) -> dict[str, float]:
    """Seconds of all iterations by phase."""
    return {phase: sum(parts[phase] for parts in option.iterations) for phase in PHASES}


def _tail(forecast: Forecast, config: RunConfig) -> Iterator[str]:
    """What does not fit, and what is not counted."""
    if not forecast.tensor_parallel:
        yield f"generation does not fit: the model needs more than {count(forecast.machine.each, 'GPU')} of this kind"
    elif not any(option.fits for option in forecast.options):
        yield "training does not fit: take more GPUs or nodes, larger ones, or a smaller model"
    if (option := forecast.cheapest(lora=False) or forecast.cheapest(lora=True)) is not None:
        yield f"to save a checkpoint, each node needs {size(option.host_bytes)} of its own memory"
    missing = ["benchmarks"] if config.evaluate.suites or config.evaluate.lm_eval.tasks else []
    missing += ["controls"] if config.controls.trainings else []
    uncounted = f"; {' and '.join(missing)} not counted" if missing else ""
    yield f"estimates from the vendor's figures, within about 25 % where they could be compared{uncounted}"
