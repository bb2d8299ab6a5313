"""Reductions in parts, against NumPy, on CPU and in the form for other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops import reduce
from minigpt_jax.ops.platform import traced_for


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 8, 65, 171, 5000])
def test_reductions_are_those_of_numpy(size: int, rows: int, platform: str) -> None:
    x = np.random.default_rng(size).normal(size=(rows, size)).astype(np.float32)
    with traced_for(platform):
        np.testing.assert_array_equal(reduce.max(jnp.asarray(x)), x.max(1))
        np.testing.assert_array_equal(reduce.min(jnp.asarray(x)), x.min(1))
        np.testing.assert_allclose(reduce.sum(jnp.asarray(x)), x.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-4)


def test_logsumexp_of_large_entries_infinities_and_nan() -> None:
    x = np.zeros((5, 1000), np.float32)
    x[0] = np.linspace(-5, 500, 1000)
    x[1] = -np.inf
    x[2] = np.where(np.arange(1000) == 7, 3.0, -np.inf)
    x[3, 123], x[4, 321] = np.inf, np.nan
    expected = [np.logaddexp.reduce(x[0].astype(np.float64)), -np.inf, 3.0, np.inf, np.nan]
    np.testing.assert_allclose(reduce.logsumexp(jnp.asarray(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(reduce.logsumexp(jnp.asarray(x)), jax.nn.logsumexp(x, axis=1), rtol=1e-6)


def test_sums_are_precise_alone_and_among_other_rows() -> None:
    """Filters by probability mass allow for an error of a millionth."""
    x = np.exp(3 * np.random.default_rng(0).normal(size=(8, 5000))).astype(np.float32)
    exact = x.sum(1, dtype=np.float64)
    np.testing.assert_allclose(jax.jit(reduce.sum)(x), exact, rtol=2.4e-7)
    np.testing.assert_allclose([jax.jit(reduce.sum)(row[None])[0] for row in x], exact, rtol=2.4e-7)


def test_nan_is_kept() -> None:
    x = jnp.zeros((1, 1000)).at[0, 321].set(jnp.nan)
    assert np.isnan([reduce.max(x), reduce.min(x), reduce.sum(x)]).all()
