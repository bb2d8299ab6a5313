"""Matmul of bfloat16 operands with accumulation in float32, in the form that is fast on CPU.

A CPU with AMX or AVX-512 BF16 multiplies bfloat16 several times as fast as float32. XLA uses these instructions only if
the result is float32 and both operands are row-major in memory. With jaxlib 0.10 on two cores this form reaches up to
1,900 GFLOP/s, and any other form about 200. On other devices, and for other types, the functions here are `jnp.matmul`,
whose result is rounded to the operands' type before it is cast.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from minigpt_jax.ops.platform import on_cpu


def matmul(a: Float[Array, "*B M K"], b: Float[Array, "*B K N"], dtype: Any = None) -> Float[Array, "*B M N"]:
    """`jnp.matmul` of two arrays with the same leading axes. The result has type `dtype`, by default that of `a`."""
    dtype = dtype or a.dtype
    if on_cpu() and a.dtype == b.dtype == jnp.bfloat16:
        return _in_float32(a, b).astype(dtype)
    return jnp.matmul(a, b).astype(dtype)


def dot_general(
    a: Array, b: Array, dimension_numbers: Any, precision: None = None, preferred_element_type: Any = None
) -> Array:
    """A drop-in for `jax.lax.dot_general` in a dense layer: the product of the last axis of `a` with a matrix."""
    assert dimension_numbers == (((a.ndim - 1,), (0,)), ((), ())), dimension_numbers
    assert precision is None, precision
    return matmul(a.reshape(-1, a.shape[-1]), b, preferred_element_type).reshape(*a.shape[:-1], -1)


@jax.custom_vjp
def _in_float32(a: Array, b: Array) -> Array:
    # The result has to be row-major too: XLA has no fast kernel for a column-major one.
    return _by_rows(jnp.matmul(_by_rows(a), _by_rows(b), preferred_element_type=jnp.float32))


def _forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _in_float32(a, b), (a, b)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = residuals
    gradient = gradient.astype(a.dtype)
    a_gradient = _in_float32(gradient, b.mT)
    narrow = a.shape[-1] <= gradient.shape[-1]  # the narrower of the two is the one that gets transposed in memory
    b_gradient = _in_float32(a.mT, gradient) if narrow else _in_float32(gradient.mT, a).mT
    return a_gradient.astype(a.dtype), b_gradient.astype(b.dtype)


_in_float32.defvjp(_forward, _backward)


def _by_rows(x: Array) -> Array:
    """The same array in row-major layout. A transposed array is copied once, outside any loop that only reads it."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
