"""A decoder block of the user's own: finding it, and checking that it returns what `blocks.Block` asks for."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array

from minigpt_jax.config import code
from minigpt_jax.errors import UserError
from minigpt_jax.ops import kv_cache


def user_block(name: str) -> type[nn.Module]:
    """The block `FILE.py:Name` of the user's own.

    Raises:
        UserError: the file has not been run, or the name is not that of a Flax module with the call of `Block`.
    """
    module = code.loaded(name)
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"--model.block {name} is no Flax module; extend minigpt_jax.model.blocks.Block")
    code.check_call(module, "config, dtype", f"--model.block {name}: it")
    arguments = "self, x, position, mask, layer, deterministic, dropout_call"
    code.check_call(module.__call__, arguments, f"--model.block {name}: its __call__")
    return module


def check_result(name: str, result: Any, x_BTD: Array, layer: kv_cache.Layer | None) -> None:
    """Checks what the call of a user's block with this input and this layer returned.

    Raises:
        UserError: it is not the output and the state that the docstring of `Block` asks for.
    """
    expected = f"output {list(x_BTD.shape)}, " + (
        "(keys [B, T, K, H], values [B, T, K, H], ...)" if layer is None else f"a cache layer {_shapes(layer)}"
    )
    output, state = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
    if layer is not None:
        fits = _shapes(state) == _shapes(layer)
    else:
        axes = [getattr(leaf, "ndim", 0) for leaf in state] if isinstance(state, tuple) else []
        fits = axes == [4, 4, *(3 for _ in axes[2:])]
    if _shapes(output) != _shapes(x_BTD) or not fits:
        raise UserError(
            f"--model.block {name}: its __call__ returned {_shapes(result)}; it must return ({expected}), as the "
            "docstring of minigpt_jax.model.blocks.Block says"
        )


def _shapes(value: Any) -> str:
    """The shapes of the arrays in a nested tuple, as text."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shapes, value))})"
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
