"""The weights in a model's folder: which files hold them, what the files' headers say, and whether values are finite.

Headers are small, whatever the model's size. So names, shapes and types are compared with the model before anything is
loaded. Values are read only where that takes seconds, or where it is asked for.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import PreTrainedModel

from spin_core.errors import ModelError, first_line, library_errors, printable
from spin_core.models.files import check_safetensors
from spin_core.models.skeleton import compare
from spin_core.runtime.progress import Progress
from spin_core.store.weights_index import WEIGHTS_INDEX, indexed_files

_WEIGHTS = "model.safetensors"

VALUES_LIMIT = 4 * 10**9
"""Values are looked through if all weights together have at most this many bytes, which takes a few seconds."""

_CHUNK = 1 << 24
"""Bytes of values that are looked through at a time."""

_SHOWN = 3
"""The most names that a message lists."""

_EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0xFF << 23), "BF16": (2, 0xFF << 7), "F16": (2, 0x1F << 10)}
"""Bytes of a number, and the bits of its exponent, by type. All ones there mean NaN or infinity."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The types of weights that can be trained, by their names in headers."""


class Header(NamedTuple):
    """What a file says of one of its tensors."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights. Raises `ModelError` if there are none, or not all."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds an adapter, not a model: merge it into its model and set model.path to that")
    check_safetensors(folder)
    names = indexed_files(folder / WEIGHTS_INDEX) if (folder / WEIGHTS_INDEX).exists() else [_WEIGHTS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {_listed(missing)}: copy or fetch the model again")
    return [folder / name for name in names]


def read_headers(files: Sequence[Path]) -> dict[str, Header]:
    """The header of each weight, by its name. Raises `ModelError` for a file that is damaged or not whole."""
    headers: dict[str, Header] = {}
    for path in files:

        def failed(error: BaseException, path: Path = path) -> ModelError:
            return ModelError(f"{path} is not a whole safetensors file ({first_line(error)}): copy or fetch it again")

        with library_errors(failed):
            with safe_open(path, "np"):
                pass  # checks the header, and that the file is as long as it says
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            for name, tensor in tensors.items():
                start, end = (8 + length + offset for offset in tensor["data_offsets"])
                headers[name] = Header(path, tensor["dtype"], tuple(tensor["shape"]), start, end)
    if not headers:
        raise ModelError(f"{files[0]} holds no weights: copy or fetch it again")
    return headers


def count_weights(headers: Mapping[str, Header]) -> tuple[int, str]:
    """How many weights there are, and their types: `BF16 and F32`."""
    kinds: Counter[str] = Counter()
    for header in headers.values():
        kinds[header.dtype] += math.prod(header.shape)
    return kinds.total(), " and ".join(sorted(kinds))


def check_weights(source: Path, skeleton: PreTrainedModel, headers: Mapping[str, Header]) -> set[str]:
    """Compare names, shapes and types with the model's. Returns the names of weights that the model does not use.

    Raises:
        ModelError: a weight is missing, has another shape, or is stored as something that cannot be trained.
    """
    parts = (skeleton.config, skeleton.config.get_text_config())
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        raise ModelError(f"the weights in {source} are quantised: set model.path to a model whose weights are not")
    tensors = {
        name: torch.empty(header.shape, dtype=_DTYPES.get(header.dtype, torch.uint8), device="meta")
        for name, header in headers.items()
    }

    def failed(error: BaseException) -> ModelError:
        return ModelError(
            f"the weights in {source} do not fit its config.json ({first_line(error)}): copy or fetch the model again"
        )

    with library_errors(failed):
        mismatch = compare(skeleton, tensors)
    if mismatch.missing:
        raise ModelError(f"the weights in {source} lack {_listed(mismatch.missing)}: copy or fetch the model again")
    if mismatch.other_shape:
        raise ModelError(
            f"the weights in {source} do not fit its config.json ({_listed(mismatch.other_shape)}): "
            "copy or fetch the model again"
        )
    unused = set(mismatch.unused)
    packed = [name for name, header in headers.items() if header.dtype not in _DTYPES and name not in unused]
    if packed:
        header = headers[packed[0]]
        raise ModelError(
            f"{header.file}: {printable(packed[0])} is stored as {header.dtype}, which cannot be trained: "
            "set model.path to a model whose weights are not quantised"
        )
    return unused


def check_values(
    headers: Mapping[str, Header],
    *,
    without: Collection[str] = (),
    most: float = VALUES_LIMIT,
    progress: Progress | None = None,
) -> bool:
    """Look for NaN and infinity. Returns whether values were read at all.

    Args:
        headers: the headers of all weights.
        without: names of weights that are skipped.
        most: nothing is read if all weights together have more bytes than this.
        progress: asked after each weight whether to stop.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    if sum(header.end - header.start for header in headers.values()) > most:
        return False
    for name, header in headers.items():
        if progress is not None:
            progress.check()
        if name not in without and (bad := _count_not_finite(header)):
            raise ModelError(
                f"{header.file}: {printable(name)} holds NaN or infinity in {bad:,} of {math.prod(header.shape):,} "
                "values: copy or fetch the model again, or repeat the training that made it"
            )
    return True


def _count_not_finite(header: Header) -> int:
    """How many values of a tensor are NaN or infinite. Types without such values have none."""
    if header.dtype not in _EXPONENTS or header.end == header.start:
        return 0
    size, mask = _EXPONENTS[header.dtype]
    kind = np.dtype(f"<u{size}")
    count = 0
    with header.file.open("rb") as file:
        file.seek(header.start)
        left = header.end - header.start
        while left > 0 and (data := file.read(min(_CHUNK, left))):
            bits: NDArray[np.unsignedinteger] = np.frombuffer(data, kind)
            count += int(np.count_nonzero((bits & kind.type(mask)) == mask))
            left -= len(data)
    return count


def _listed(names: Sequence[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
