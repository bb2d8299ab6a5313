"""Products of bfloat16 on a CPU are NumPy's in float64, rounded, whatever the operands' layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops.matmul import dot_general, matmul

SHAPES = {
    "wide": ((), 12, 8, 20),
    "narrow": ((), 12, 20, 8),
    "one row": ((), 1, 16, 5),
    "batch": ((3,), 12, 8, 20),
    "two axes": ((2, 3), 7, 20, 8),
}


def draw(*shape: int) -> Any:
    return jax.random.normal(jax.random.key(len(shape) + shape[-1]), shape, jnp.bfloat16)


def exact(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(name: str, turned: tuple[bool, bool]) -> None:
    """Transposed operands and results are what XLA lays out by columns, where its own product fails or is slow."""
    batch, m, k, n = SHAPES[name]
    shapes = (m, k), (k, n)
    a, b = (draw(*batch, *(shape[::-1] if turn else shape)) for shape, turn in zip(shapes, turned, strict=True))
    gradient = draw(*batch, n, m)

    def product(a: Any, b: Any) -> Any:
        a, b = (x.mT if turn else x for x, turn in zip((a, b), turned, strict=True))
        return matmul(a, b).mT

    @jax.jit
    def outcome(a: Any, b: Any) -> Any:
        y, pull = jax.vjp(product, a, b)
        return y, *pull(gradient)

    got = outcome(a, b)
    a, b = (exact(x.mT if turn else x) for x, turn in zip((a, b), turned, strict=True))
    g = np.swapaxes(exact(gradient), -1, -2)
    expected = a @ b, g @ np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2) @ g
    turns = True, *turned
    for x, truth, turn in zip(got, expected, turns, strict=True):
        assert x.dtype == jnp.bfloat16
        truth = np.swapaxes(truth, -1, -2) if turn else truth
        np.testing.assert_allclose(exact(x), truth, rtol=2**-8, atol=1e-5 * np.abs(truth).max())


def test_sums_and_result_are_float32() -> None:
    """4,097 is no bfloat16, and a sum of ones in bfloat16 stops at 256."""
    ones = jnp.ones((2, 4097), jnp.bfloat16)
    assert (jax.jit(lambda a: matmul(a, a.T, jnp.float32))(ones) == 4097).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dot_general_is_laxs(dtype: Any) -> None:
    x, kernel = (jnp.asarray(draw(*shape), dtype) for shape in ((2, 3, 8), (8, 5)))
    numbers = ((2,), (0,)), ((), ())
    got, expected = (f(x, kernel, numbers) for f in (dot_general, jax.lax.dot_general))
    assert got.dtype == expected.dtype == dtype
    np.testing.assert_allclose(exact(got), exact(expected), rtol=2**-7, atol=2**-7)


def test_vmap() -> None:
    """As a stack of trials may run it."""
    a, b = draw(4, 6, 8), draw(8, 5)
    got = jax.vmap(matmul, (0, None))(a, b)
    np.testing.assert_array_equal(exact(got), exact(matmul(a, jnp.broadcast_to(b, (4, 8, 5)))))
