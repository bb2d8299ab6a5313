"""Matrix products of bfloat16 that sum in float32, in the form that a CPU is fast at.

With AMX or AVX-512 BF16 a CPU multiplies bfloat16 several times as fast as float32, but XLA makes use of it only where
the result is float32 and both operands lie in memory row by row (jaxlib 0.10, two cores: up to 1,900 GFLOP/s, about 200
in any other form). For other devices and types all of this is `jnp.matmul`, whose result is rounded to their type
before it is given another.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


def matmul(a: Float[Array, "*B M K"], b: Float[Array, "*B K N"], dtype: Any = None) -> Float[Array, "*B M N"]:
    """`jnp.matmul` of two arrays with the same leading axes; the result is of `dtype`, by default theirs."""
    dtype = dtype or a.dtype
    if jax.default_backend() == "cpu" and a.dtype == b.dtype == jnp.bfloat16:
        return _in_float32(a, b).astype(dtype)
    return jnp.matmul(a, b).astype(dtype)


def dot_general(
    a: Array, b: Array, dimension_numbers: Any, precision: None = None, preferred_element_type: Any = None
) -> Array:
    """`jax.lax.dot_general` for a dense layer, a product of the last axis of `a` with a matrix."""
    assert dimension_numbers == (((a.ndim - 1,), (0,)), ((), ())), dimension_numbers
    assert precision is None, precision
    return matmul(a.reshape(-1, a.shape[-1]), b, preferred_element_type).reshape(*a.shape[:-1], -1)


@jax.custom_vjp
def _in_float32(a: Array, b: Array) -> Array:
    # The result too: a product that XLA lays out by columns is one that it cannot run.
    return _by_rows(jnp.matmul(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32))


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _in_float32(a, b), (a, b)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = kept
    gradient = gradient.astype(a.dtype)
    a_gradient = _in_float32(gradient, b.mT)
    narrow = a.shape[-1] <= gradient.shape[-1]  # of the two, the narrower is copied
    b_gradient = _in_float32(a.mT, gradient) if narrow else _in_float32(gradient.mT, a).mT
    return a_gradient.astype(a.dtype), b_gradient.astype(b.dtype)


_in_float32.defvjp(_forward, _backward)


def _by_rows(x: Array) -> Array:
    """The same array, in memory row by row: a transposed one is copied, before a loop that does not change it."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
