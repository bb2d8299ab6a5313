"""Reductions in parts, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops import reduce


@pytest.mark.parametrize("size", [1, 8, 65, 171, 5000])
def test_reductions_are_those_of_numpy(size):
    x = np.random.default_rng(size).normal(size=(3, size)).astype(np.float32)
    np.testing.assert_array_equal(reduce.max(jnp.asarray(x)), x.max(1))
    np.testing.assert_array_equal(reduce.min(jnp.asarray(x)), x.min(1))
    np.testing.assert_allclose(reduce.sum(jnp.asarray(x)), x.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-4)


def test_logsumexp_of_large_entries_and_of_none():
    x = np.full((3, 1000), -np.inf, np.float32)
    x[0] = np.linspace(-5, 500, 1000)
    x[1, 7] = 3.0
    expected = [np.logaddexp.reduce(x[0].astype(np.float64)), 3.0, -np.inf]
    np.testing.assert_allclose(reduce.logsumexp(jnp.asarray(x)), expected, rtol=1e-6)


def test_nan_is_kept():
    x = jnp.zeros((1, 1000)).at[0, 321].set(jnp.nan)
    assert np.isnan([reduce.max(x), reduce.min(x), reduce.sum(x), reduce.logsumexp(x)]).all()
