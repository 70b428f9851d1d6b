"""The command `spin publish`: a version, or an iteration's pairs, with a card for the hub."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.command_line.options import lineage_argument, runs_option, warn

if TYPE_CHECKING:
    from spin_core.lineage.lineage import Lineage


@click.command()
@lineage_argument("name", metavar="LINEAGE")
@click.argument("t", type=int)
@click.argument("target")
@click.option("--adapter", is_flag=True, help="Only the adapter of a version that was trained with train.lora.")
@click.option("--pairs", is_flag=True, help="The pairs of iteration T as a data set instead of θ_T.")
@click.option("--gguf", is_flag=True, help="Also one GGUF file, by llama.cpp's converter, which must be on the PATH.")
@click.option("--public", is_flag=True, help="Make a new repository public; it is private otherwise.")
@click.option("--yes", is_flag=True, help="Do not ask before files of an existing repository are replaced.")
@runs_option
def publish(
    name: str, t: int, target: str, adapter: bool, pairs: bool, gguf: bool, public: bool, yes: bool, runs: Path
) -> None:
    """Write θ_T with its model card to a new folder, or upload it: to hf://user/name."""
    from spin_core.errors import ConfigError
    from spin_core.lineage.find import find_lineage
    from spin_core.remote import hub

    if adapter + pairs + gguf > 1:
        raise ConfigError("--adapter, --pairs and --gguf exclude each other: choose one")
    lineage = find_lineage(runs, name)
    write = _write_pairs if pairs else _write_adapter if adapter else _write_gguf if gguf else _write_model
    if not target.startswith(hub.SCHEME):
        if "://" in target:
            raise ConfigError(f"{target} is neither a folder nor hf://user/name: name one of the two")
        folder = Path(target)
        if folder.exists():
            raise ConfigError(f"{folder} exists already: name another folder, or remove it")
        write(lineage, t, folder)
        click.echo(f"written to {folder}")
        return
    hub.repository(target)
    with tempfile.TemporaryDirectory(prefix="spin-publish-") as scratch:
        folder = Path(scratch) / f"{name}-{t}"
        write(lineage, t, folder)
        address = hub.upload(
            folder,
            target,
            "dataset" if pairs else "model",
            private=not public,
            confirm=lambda question: yes or _confirm(question),
        )
    click.echo(address)


def _confirm(question: str) -> bool:
    """Whether the user says yes; no where nobody can answer."""
    try:
        return click.confirm(question)
    except click.Abort:
        click.echo()
        return False


def _write_model(lineage: "Lineage", t: int, folder: Path) -> None:
    """Write θ_t as plain weights, with its card."""
    from spin_core.lineage.find import find_version
    from spin_core.lineage.model_folder import write_model_folder

    version = find_version(lineage, t)
    for warning in write_model_folder(version, lineage.config, folder, link=False):
        warn(warning)
    _write_card(lineage, t, folder, is_adapter=False)


def _write_gguf(lineage: "Lineage", t: int, folder: Path) -> None:
    """Write θ_t as plain weights and as one GGUF file, with its card."""
    from spin_core.lineage.model_folder import add_gguf, find_converter

    converter = find_converter()
    try:
        _write_model(lineage, t, folder)
        add_gguf(folder, f"{lineage.name}-{t}", converter)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_adapter(lineage: "Lineage", t: int, folder: Path) -> None:
    """Write θ_t as one adapter, with its card."""
    from spin_core.lineage.export import export_model
    from spin_core.lineage.find import find_version

    export_model(find_version(lineage, t).path, folder, "adapter", lineage.config.model)
    _write_card(lineage, t, folder, is_adapter=True)


def _write_card(lineage: "Lineage", t: int, folder: Path, *, is_adapter: bool) -> None:
    """Write the card and the recipe of a version."""
    from flows.command_line.printing.recipes import as_yaml
    from spin_core.leaderboard.board import leaderboard
    from spin_core.lineage.find import find_version
    from spin_core.reports.model_card import RECIPE, model_card

    card = model_card(lineage, find_version(lineage, t), leaderboard(lineage), is_adapter=is_adapter)
    (folder / "README.md").write_text(card, "utf-8")
    (folder / RECIPE).write_text(as_yaml(lineage.config), "utf-8")


def _write_pairs(lineage: "Lineage", t: int, folder: Path) -> None:
    """Write the pairs of iteration t as TRL reads them, with their card."""
    from flows.command_line.printing.recipes import as_yaml
    from flows.command_line.printing.records import record_at
    from spin_core.lineage.export import export_pairs
    from spin_core.reports.model_card import RECIPE, pairs_card

    record = record_at(lineage, t)
    export_pairs(record.pairs.path, folder / "pairs.parquet", "dpo")
    (folder / "README.md").write_text(pairs_card(lineage, record), "utf-8")
    (folder / RECIPE).write_text(as_yaml(record.config), "utf-8")
