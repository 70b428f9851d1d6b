"""The settings of metrics."""

import pytest

from spin_core.config import metrics
from spin_core.config.metrics import MetricsConfig
from spin_core.config.resolve import resolve
from spin_core.errors import ConfigError


def test_a_sink_that_is_not_installed_or_not_known_is_rejected(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match="has wandb, which is not installed: install spin-loop with its extra `wandb`"
    ):
        metrics.check(MetricsConfig(sinks=("wandb",)))
    metrics.check(MetricsConfig(sinks=()))
    with pytest.raises(ConfigError, match=r"metrics\.sinks"):
        resolve("demo", sets=["metrics.sinks=[prometheus]"])
