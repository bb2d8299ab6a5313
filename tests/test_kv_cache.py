"""The cache against lists of what was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.ops import kv_cache

B, N, S, H = 3, 2, 5, 4


def token(row, position):
    """The key of a row's token, [N, H]; its value is the negative."""
    return np.arange(N * H, dtype=np.float32).reshape(N, H) / 10 + 100 * row + position


def fill(length, steps, slots=S, width=4):
    """A cache with prompts of these lengths, and then some steps."""
    prompts = np.stack([[token(row, position) for position in range(width)] for row in range(len(length))])
    cache = kv_cache.from_prefill([(prompts, -prompts)] * 2, slots, jnp.array(length))
    for step in range(steps):
        new = np.stack([token(row, n + step) for row, n in enumerate(length)])[:, None]
        cache = tuple(kv_cache.write(layer, new, -new, jnp.array(length) + step) for layer in cache)
    return cache


def visible_tokens(cache, row, position):
    """The positions whose keys and values a query of a row would see, by slot."""
    mask = kv_cache.visible(jnp.array([position]), kv_cache.num_slots(cache))[0]
    seen = []
    for slot in np.flatnonzero(mask):
        keys, values = (np.asarray(leaf[row, :, slot]) for leaf in cache[-1][:2])
        np.testing.assert_array_equal(keys, -values)
        [match] = [p for p in range(position + 1) if np.array_equal(keys, token(row, p))]
        assert match % kv_cache.num_slots(cache) == slot
        seen.append(match)
    return sorted(seen)


def test_allocate_has_rows_first():
    cache = kv_cache.allocate(B, 2, S, N, H, jnp.bfloat16)
    assert [leaf.shape for leaf in jax.tree.leaves(cache)] == [(B, N, S, H)] * 4
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    assert kv_cache.num_slots(cache) == S


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_a_token_sees_all_before_it_up_to_the_window(steps):
    lengths = [1, 4, 2]
    cache = fill(lengths, steps)
    for row, length in enumerate(lengths):
        last = length + steps - 1
        assert visible_tokens(cache, row, last) == list(range(max(0, last - S + 1), last + 1))


@pytest.mark.parametrize("lengths", [[1, 4, 3], [9, 2, 6], [5, 5, 8]])
def test_a_prompt_wider_than_the_cache_leaves_its_last_tokens(lengths):
    cache = fill(lengths, 1, width=9)
    for row, length in enumerate(lengths):
        assert visible_tokens(cache, row, length) == list(range(max(0, length - S + 1), length + 1))


def test_a_prompt_leaves_the_last_inputs_of_its_convolutions():
    """Those before its first token are 0, and what stands in its padding is not looked at."""
    keys = jnp.zeros((B, 4, N, H))
    inputs = jnp.arange(1.0, 1 + B * 4 * 2).reshape(B, 4, 2)
    (layer,) = kv_cache.from_prefill([(keys, keys, inputs, -inputs)], S, jnp.array([1, 4, 2]), recent=3)
    nothing, (a, b, c) = np.zeros(2), np.asarray(inputs)
    expected = np.array([[nothing, nothing, a[0]], b[1:4], [nothing, c[0], c[1]]])
    jax.tree.map(np.testing.assert_array_equal, layer.recent, (expected, -expected))
    assert kv_cache.write(layer, keys[:, :1], keys[:, :1], jnp.array([1, 4, 2])).recent is layer.recent


def with_inputs(cache):
    """The same cache with inputs of two convolutions in every layer, which differ between all rows.

    The values of the last layer are whole numbers, one a head, as in a pointer's.
    """
    rows = len(cache[0].keys)
    recent = jnp.arange(rows * 6.0).reshape(rows, 3, 2)
    *layers, last = (layer._replace(recent=(recent, -recent)) for layer in cache)
    return (*layers, last._replace(values=last.values[..., :1].astype(int)))


def test_reorder_and_repeat_move_whole_rows():
    cache = with_inputs(fill([1, 4, 2], 2))
    for leaf, moved, twice in zip(
        *map(jax.tree.leaves, (cache, kv_cache.reorder(cache, jnp.array([2, 0, 0, 1])), kv_cache.repeat(cache, 2))),
        strict=True,
    ):
        np.testing.assert_array_equal(moved, np.asarray(leaf)[[2, 0, 0, 1]])
        np.testing.assert_array_equal(twice, np.asarray(leaf)[[0, 0, 1, 1, 2, 2]])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all slots are moved")
@pytest.mark.parametrize(("used", "moved"), [(0, 0), (1, 2), (2, 2), (5, 6), (8, 8), (11, 8)])
def test_reorder_need_not_move_slots_that_are_not_in_use(monkeypatch, used, moved):
    monkeypatch.setattr(kv_cache, "_BLOCK", 2)
    cache = {"layers": with_inputs(fill([4, 4, 4], 4, slots=8)), "other": jnp.arange(B)}
    rows = jnp.array([2, 0, 0])
    partly, wholly = kv_cache.reorder(cache, rows, jnp.array(used)), kv_cache.reorder(cache, rows)
    np.testing.assert_array_equal(partly["other"], wholly["other"])
    jax.tree.map(np.testing.assert_array_equal, partly["layers"][1].recent, wholly["layers"][1].recent)
    slots = ([x for layer in c["layers"] for x in (layer.keys, layer.values)] for c in (cache, partly, wholly))
    for before, after, expected in zip(*slots, strict=True):
        np.testing.assert_array_equal(after[:, :, :moved], expected[:, :, :moved])
        np.testing.assert_array_equal(after[:, :, moved:], before[:, :, moved:])


@pytest.mark.parametrize("position", [2, 7])
def test_adopt_is_reorder_for_rows_that_differ_in_one_token(position):
    cache = with_inputs(kv_cache.repeat(fill([4, 4], 3, slots=S), 3))
    new = np.random.default_rng(0).normal(size=(6, 1, N, H)).astype(np.float32)
    where, rows = jnp.full(6, position), jnp.array([1, 1, 1, 5, 5, 5])
    layers = {
        "layers": tuple(kv_cache.write(layer, new, -new[..., : layer.values.shape[-1]], where) for layer in cache),
        "other": jnp.arange(6),
    }
    adopted, reordered = kv_cache.adopt(layers, rows, where), kv_cache.reorder(layers, rows)
    jax.tree.map(np.testing.assert_array_equal, adopted, reordered)
    assert not np.array_equal(adopted["layers"][0].keys, layers["layers"][0].keys)


def test_a_step_writes_in_place():
    """A donated cache keeps its memory, and a loop of steps needs next to none besides."""
    rows, slots = 4, 256

    def steps(cache, n):
        def body(i, cache):
            new = jnp.full((rows, 1, N, H), i, jnp.float32)
            return tuple(kv_cache.write(layer, new, new, jnp.arange(rows) + i) for layer in cache)

        return jax.lax.fori_loop(0, n, body, cache)

    cache = kv_cache.allocate(rows, 2, slots, N, H)
    compiled = jax.jit(steps, donate_argnums=0).lower(cache, 3).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 4
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    written = compiled(cache, 3)
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(written)] == pointers
    assert [float(written[0].keys[1, 0, slot, 0]) for slot in range(5)] == [0, 0, 1, 2, 0]
