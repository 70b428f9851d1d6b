"""The index of a model's weights, which names the file of each, and how JSON files next to weights are read.

Libraries open any path that an index names.
"""

import json
from pathlib import Path
from typing import Any

from spin_core.errors import ModelError, first_line, printable

WEIGHTS_INDEX = "model.safetensors.index.json"


def read_model_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder. Raises `ModelError` if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({first_line(error)}): copy or fetch it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object: copy or fetch it again")
    return value


def indexed_files(index: Path) -> list[str]:
    """The names of the files in an index, sorted.

    Raises:
        ModelError: It is not an index, or names anything but files in its own folder.
    """
    value = read_model_json(index)
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map with the file of each weight: copy or fetch it again")
    for name in weight_map.values():
        if not _is_bare(name):
            raise ModelError(
                f"{index} names {printable(repr(name), 80)}, which is not the bare name of a safetensors file in its "
                "folder: copy or fetch the index again"
            )
    return sorted(set(weight_map.values()))


def _is_bare(name: object) -> bool:
    """Whether this names a safetensors file within the folder."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        return False
    return not {"/", "\\"} & set(name) and not name.startswith(".") and name.endswith(".safetensors")
