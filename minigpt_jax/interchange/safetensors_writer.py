"""A safetensors file, written a tensor at a time without PyTorch. `weights` reads such files."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from minigpt_jax.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
_TYPES = {"float32": ("F32", np.float32), "bfloat16": ("BF16", ml_dtypes.bfloat16), "float16": ("F16", np.float16)}
_ALIGNMENT = 8


def write(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    dtype: Dtype,
    metadata: Mapping[str, str],
) -> int:
    """Writes tensors into a new file. One of them at a time is in memory.

    Args:
        tensors: the name and the shape of each, and a function that returns it.
        dtype: the type to write them in.
        metadata: texts for the file's header.

    Returns:
        The number of bytes of the tensors.

    Raises:
        UserError: a number is too large for the type.
    """
    tensors = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, shape, _ in tensors:
        start, end = end, end + size_of(shape, dtype)
        header[name] = {"dtype": _TYPES[dtype][0], "shape": shape, "data_offsets": (start, end)}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(written).to_bytes(8, "little"))
        file.write(written)
        for name, shape, read in tensors:
            array = read()
            assert array.shape == shape, f"{name} is {array.shape}, and its header says {shape}"
            file.write(cast(name, array, dtype).tobytes())
    return end


def size_of(shape: tuple[int, ...], dtype: Dtype) -> int:
    """The number of bytes of a tensor."""
    return math.prod(shape) * np.dtype(_TYPES[dtype][1]).itemsize


def cast(name: str, array: np.ndarray, dtype: Dtype) -> np.ndarray:
    """A tensor in another type, contiguous. Raises UserError if a number is too large for the type."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, _TYPES[dtype][1])  # a transposed view would be written untransposed
    if not np.isfinite(result.astype(np.float32)).all() and np.isfinite(array).all():
        raise UserError(
            f"--dtype {dtype}: {name} has values up to {np.abs(array).max():.3g}, which it cannot hold; take "
            "--dtype bfloat16"
        )
    return result
