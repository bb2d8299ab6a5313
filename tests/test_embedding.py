"""The gradient of the embedding by a product is JAX's own, and closer to the truth where sums are long."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops import embedding
from minigpt_jax.ops.platform import traced_for

V, D = 11, 8


def gradients(ids: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """By the product, by `jnp.take`, and by NumPy in float64, of the same cotangent."""
    keys = jax.random.split(jax.random.key(0))
    table = jax.random.normal(keys[0], (V, D), dtype)
    cotangent = jax.random.normal(keys[1], (*ids.shape, D), dtype)
    ways = [embedding.rows, functools.partial(jnp.take, axis=0)]
    product, own = (jax.vjp(way, table, ids)[1](cotangent)[0] for way in ways)
    truth = np.zeros((V, D))
    np.add.at(truth, np.asarray(ids).ravel(), np.asarray(cotangent, np.float64).reshape(-1, D))
    return product, own, truth


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2)])
def test_gradient_is_jaxs(shape: tuple[int, ...]) -> None:
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape))  # some twice, some never
    product, own, truth = gradients(ids, jnp.float32)
    assert product.dtype == own.dtype == jnp.float32
    np.testing.assert_allclose(product, own, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(product, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13])
def test_chunks_are_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "LARGEST", rows * V + 1)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, 4)))
    product, _, truth = gradients(ids, jnp.float32)
    np.testing.assert_allclose(product, truth, rtol=1e-5, atol=1e-5)


def test_long_sums_of_bfloat16_are_not_lost() -> None:
    """A word that stands in a batch a thousand times: added one by one, what is small beside the sum drops out."""
    product, own, truth = gradients(jnp.full((4096,), 3), jnp.bfloat16)
    assert product.dtype == own.dtype == jnp.bfloat16
    wrong = {name: np.abs(np.asarray(x, np.float64) - truth)[3].max() for name, x in (("p", product), ("o", own))}
    assert wrong["p"] <= 2**-8 * np.abs(truth[3]).max() < wrong["o"]


def test_embed_is_flaxs_by_either_way() -> None:
    ids = jnp.array([[1, 2], [2, 0]])
    modules = [kind(V, D, dtype=jnp.bfloat16) for kind in (embedding.Embed, nn.Embed)]
    params: Any = modules[0].init(jax.random.key(0), ids)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, modules[1].init(jax.random.key(0), ids)))
    expected = modules[1].apply(params, ids)
    for platform in ("cpu", "cuda"):
        with traced_for(platform):
            got: Any = modules[0].apply(params, ids)
            program = str(jax.make_jaxpr(modules[0].apply)(params, ids))
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.float32(got), np.float32(expected))
        assert ("custom_vjp" in program) == (platform == "cuda")
