"""Settings of the metrics' sinks: TensorBoard, W&B and MLflow."""

from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from spin_core.config.base import Frozen
from spin_core.errors import ConfigError

SinkName = Literal["tensorboard", "wandb", "mlflow"]


class MetricsConfig(Frozen):
    """Where the metrics of every step and every version are sent. Each point is sent once, also after a crash."""

    sinks: tuple[SinkName, ...] = ("tensorboard",)
    """`tensorboard` writes into the lineage's folder; `wandb` and `mlflow` need the extras of these names, and read
    server and key from the environment (WANDB_API_KEY, WANDB_MODE; MLFLOW_TRACKING_URI, else a file in the runs)."""

    project: str = Field(default="spin", min_length=1)
    """W&B's project, and MLflow's experiment."""


def check(config: MetricsConfig) -> None:
    """Raise `ConfigError` if a sink's package is not installed."""
    for name in config.sinks:
        if find_spec(name) is None:  # packages have the names of the sinks
            raise ConfigError(
                f"metrics.sinks has {name}, which is not installed: install spin-loop with its extra `{name}`, or "
                "remove it from metrics.sinks"
            )
