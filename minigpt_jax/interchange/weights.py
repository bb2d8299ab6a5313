"""The weights of a Hugging Face folder: safetensors files, read one tensor at a time without PyTorch.

A safetensors file is the length of its header in 8 bytes, the header as JSON (for each tensor its type, its shape and
where its bytes lie), and the bytes.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from minigpt_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_LONGEST_HEADER = 100_000_000  # as in the library safetensors


class StoredTensor(NamedTuple):
    """A tensor in a file: its type, its shape and where its bytes start."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """The tensor, mapped into memory."""
        return np.memmap(self.file, self.dtype, mode="r", offset=self.start, shape=self.shape or (1,))


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's weights, of which only the headers have been read, by their names.

    Raises:
        UserError: the folder has no safetensors, or a file is missing, truncated or malformed.
    """
    found: dict[str, StoredTensor] = {}
    for file in _files(folder):
        try:
            found |= dict(_header(file))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}; fetch the folder again") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, _Damaged) else "its header is malformed"
            raise UserError(f"{file} is no intact safetensors file ({reason}); fetch it again") from error
    return found


def metadata(file: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file. Raises OSError or ValueError if it cannot be read as one."""
    return _read_header(file)[1].get("__metadata__") or {}


class _Damaged(ValueError):
    """What is wrong with a file."""


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the only one, or those that its index lists."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            strange = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is no index of safetensors files; fetch it again") from error
        if strange:
            raise UserError(f"{index} names {strange[0]}, which is no file of this folder; fetch it again")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {missing[0]}, which {INDEX} names; fetch the whole folder")
        return [folder / name for name in names]
    if pickles := sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*")):
        raise UserError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run any code and is not read; save them as "
            "safetensors (in Transformers: model.save_pretrained(FOLDER))"
        )
    raise UserError(f"{folder} has no {WEIGHTS} and no {INDEX}; fetch the whole folder")


def _read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """The length of the header, and the header."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise _Damaged(f"it has {size:,} bytes, fewer than its header")
        return length, json.loads(opened.read(length))


def _header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    size = file.stat().st_size
    length, header = _read_header(file)
    header.pop("__metadata__", None)
    for name, about in header.items():
        start, end = about["data_offsets"]
        shape = tuple(about["shape"])
        if about["dtype"] not in _TYPES:
            raise UserError(
                f"{file}: {name} is of type {about['dtype']}; weights here are {', '.join(_TYPES)}, so take a model "
                "that is not quantised"
            )
        dtype = np.dtype(_TYPES[about["dtype"]])
        if min(shape, default=1) < 0 or not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"{name} is {_written(shape)} and has {end - start:,} bytes")
        if 8 + length + end > size:
            raise _Damaged(f"it has {size:,} bytes, and {name} ends at {8 + length + end:,}")
        yield name, StoredTensor(file, dtype, shape, 8 + length + start)


def _written(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
