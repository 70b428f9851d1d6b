"""The index of a model's weights, which names the file of each. Libraries open whatever path it names."""

import json
from pathlib import Path

from spin_core.errors import ModelError

WEIGHTS_INDEX = "model.safetensors.index.json"


def indexed_files(index: Path) -> list[str]:
    """The names of the files in an index, sorted.

    Raises:
        ModelError: It is not an index, or names anything but files in its own folder.
    """
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is not an index of weights: copy or fetch the model again") from error
    for name in names:
        if not _is_bare(name):
            raise ModelError(
                f"{index} names {name!r:.120}, which is not a safetensors file in its folder: do not trust this model"
            )
    return names


def _is_bare(name: object) -> bool:
    """Whether this is the name of a file of weights, without a folder."""
    return (
        isinstance(name, str)
        and "/" not in name
        and "\\" not in name
        and "\0" not in name
        and not name.startswith(".")
        and name.endswith(".safetensors")
    )
