"""The attention that a CPU trains with is JAX's own, in its values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.config import BOS_ID
from minigpt_jax.model import training_mask
from minigpt_jax.ops import attention

B, T, H = 3, 12, 5


def tokens() -> Any:
    ids = np.random.default_rng(0).integers(3, 20, (B, T))
    ids[:, 0] = BOS_ID
    ids[0, 5] = BOS_ID
    return jnp.asarray(ids)


def masks() -> dict[str, Any]:
    nothing = training_mask(tokens()).at[2, 4].set(False).at[1, 0].set(False)
    return {
        "causal": training_mask(tokens()),
        "documents": training_mask(tokens(), start_id=BOS_ID),
        "queries that see nothing": nothing,
        "a row that sees nothing": training_mask(tokens()).at[1].set(False),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (4, 1)])
def test_heads_first_equals_jax_dot_product_attention(name: str, heads: int, kv_heads: int) -> None:
    mask = masks()[name]
    keys = jax.random.split(jax.random.key(0), 4)
    widths = heads, kv_heads, kv_heads, heads
    q, k, v, g = (2 * jax.random.normal(key, (B, T, n, H)) for key, n in zip(keys, widths, strict=True))

    def outcome(attend: Any) -> Any:
        y, pull = jax.vjp(attend, q, k, v)
        return y, pull(g)

    got = outcome(lambda q, k, v: attention.heads_first(q, k, v, mask))
    expected = outcome(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_bfloat16_softmax_is_in_float32() -> None:
    q, k, v = (3 * jax.random.normal(jax.random.key(i), (B, T, 2, H), jnp.bfloat16) for i in range(3))
    got = attention.heads_first(q, k, v, training_mask(tokens()))
    expected = jax.nn.dot_product_attention(q, k, v, mask=training_mask(tokens())[:, None])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=0.02, atol=0.02)
