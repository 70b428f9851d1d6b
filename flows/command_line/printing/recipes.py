"""Recipes, and the settings of a run, as `spin recipes` prints them."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from flows.command_line.printing.console import console
from spin_core.config.recipes import ABOUT, RECIPES
from spin_core.config.run import RunConfig


def print_recipes() -> None:
    """Print each recipe and what it is for."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name in RECIPES:
        table.add_row(f"[bold]{name}[/]", ABOUT[name])
    console.print(table)
    console.print("\n[dim]spin recipes NAME shows all its values; spin recipes --settings explains each setting[/]")


def print_settings() -> None:
    """Print every setting with its default and its help."""
    for name, default, help_text in _settings(RunConfig):
        console.print(
            f"[bold]{name}[/] [dim]= {escape(repr(default))}[/]\n    {escape(' '.join((help_text or '').split()))}"
        )


def as_yaml(config: RunConfig) -> str:
    """A configuration as a YAML file that `--config` reads."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, str | None]]:
    """Dotted name, default and help of every setting."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
        elif not field.is_required():
            yield prefix + name, field.default, field.description
