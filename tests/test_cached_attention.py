"""Attention to a cache against attention to whole sequences, and against copies of what branches share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops import cached_attention, kv_cache

B, N, S, H = 3, 2, 5, 4


@pytest.mark.parametrize("query_heads", [N, 3 * N])
def test_cached_attention_equals_full_attention(query_heads):
    generator = np.random.default_rng(0)
    query = generator.normal(size=(B, 1, query_heads, H)).astype(np.float32)
    keys, values = generator.normal(size=(2, B, S, N, H)).astype(np.float32)
    cache = kv_cache.from_prefill([(keys, values)], S, jnp.full(B, S))
    mask = kv_cache.visible(jnp.array([0, 2, 7]), S)
    out = cached_attention.attend(jnp.asarray(query), cache[0], mask)
    for row, seen in enumerate([1, 3, S]):
        for head in range(query_heads):
            kv_head = head // (query_heads // N)
            scores = keys[row, :seen, kv_head] @ query[row, 0, head] / np.sqrt(H)
            weights = np.exp(scores - scores.max())
            np.testing.assert_allclose(
                out[row, 0, head], weights / weights.sum() @ values[row, :seen, kv_head], atol=1e-5
            )
    # The library's own agrees on which query heads share a key-value head.
    library = jax.nn.dot_product_attention(query, keys, values, mask=mask[:, None, None])
    np.testing.assert_allclose(out, library, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere attention always reads all slots")
@pytest.mark.parametrize("last", [0, 1, 2, 5, 7, 8])
def test_attention_to_a_large_cache_stops_after_the_last_slot_in_use(monkeypatch, last):
    """In steps of a quarter; what lies beyond is never read, so that not even NaN there matters."""
    slots, position = 8, jnp.array([0, last, min(last, 1)])
    keys, values = np.random.default_rng(2).normal(size=(2, B, slots, N, H)).astype(np.float32)
    query = jnp.asarray(keys[:, :1] + 1)
    unread = 2 * (min(last, slots - 1) // 2 + 1)
    everything = kv_cache.from_prefill([(keys, values)], slots, jnp.full(B, slots))[0]
    expected = cached_attention.attend(query, everything, kv_cache.visible(position, slots))
    keys[:, unread:] = values[:, unread:] = np.nan
    layer = kv_cache.from_prefill([(keys, values)], slots, jnp.full(B, slots))[0]
    monkeypatch.setattr(cached_attention, "_MIN_BYTES_TO_SKIP", 0)
    out = cached_attention.attend(query, layer, kv_cache.visible(position, slots))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_generation_past_the_window_with_a_window_of_keys():
    """Attention through a cache that rolls equals attention to the last S tokens of all."""
    generator = np.random.default_rng(1)
    tokens = generator.normal(size=(2, 3, 13, N, H)).astype(np.float32)
    lengths = jnp.array([2, 4, 3])
    cache = kv_cache.from_prefill([(tokens[0, :, :4], tokens[1, :, :4])], S, lengths)
    step = jax.jit(functools.partial(kv_cache.write))
    for n in range(9):
        position = lengths + n
        new = [np.take_along_axis(part, np.asarray(position)[:, None, None, None], axis=1) for part in tokens]
        cache = (step(cache[0], *new, position),)
        out = cached_attention.attend(jnp.asarray(new[0]), cache[0], kv_cache.visible(position, S))
        for row, last in enumerate(np.asarray(position)):
            window = tokens[:, row, max(0, last - S + 1) : last + 1]
            expected = jax.nn.dot_product_attention(new[0][row], window[0], window[1])
            np.testing.assert_allclose(out[row], expected, atol=1e-5)


@pytest.mark.parametrize("slots", [5, 32])
@pytest.mark.parametrize(("heads", "query_heads"), [(1, 1), (2, 4)])
def test_branches_that_are_left_in_place_attend_as_copied_ones(slots: int, heads: int, query_heads: int):
    """Those of the first prompt part for good, and so differ in up to 12 of 32 slots. Those of the second go on from
    one another. With 5 slots the cache rolls."""
    rows, branches, width, steps = 2, 3, 4, 12
    rng = np.random.default_rng(slots + heads)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    length = np.array([3, 2], np.int32)
    prompts = [(draw(rows, 3, heads, width), draw(rows, 3, heads, width), draw(rows, 3, 5))]
    copied = kv_cache.repeat(kv_cache.from_prefill(prompts, slots, length, recent=1), branches)
    left = kv_cache.fork(kv_cache.from_prefill(prompts, slots, length, recent=1, forks=True), branches)
    assert left[0].forked

    @jax.jit
    def step(cache, parent, key, value, query, position):
        [layer] = kv_cache.reorder(cache, parent, used=jnp.max(position))
        layer = kv_cache.write(layer, key, value, position)
        return layer, cached_attention.attend(query, layer, kv_cache.visible(position, slots))

    for n in range(steps):
        branch = rng.integers(branches, size=(rows, branches))
        branch[0] = np.arange(branches)
        parent = (branches * np.arange(rows)[:, None] + branch).reshape(-1)
        position = np.repeat(length + n, branches)
        key, value = (draw(rows * branches, 1, heads, width) for _ in range(2))
        query = draw(rows * branches, 1, query_heads, width)
        copied_layer, expected = step(copied, parent, key, value, query, position)
        left_layer, found = step(left, parent, key, value, query, position)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(left_layer.recent[0], copied_layer.recent[0])
        copied, left = (copied_layer,), (left_layer,)
