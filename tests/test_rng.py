"""Streams of keys: pure functions of seed, name and indices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import rng
from minigpt_jax.errors import UserError


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, -1, -(2**31)])
def test_a_seed_is_the_same_in_every_form(seed):
    forms = [rng.words(seed)]
    if seed < 2**31:
        forms += [np.int32(seed), jnp.int32(seed), np.int64(seed)]
    if seed >= 0:
        forms += [jnp.uint32(seed), np.uint32(seed)]
    for form in forms:
        assert data(rng.stream(form, "x")) == data(rng.stream(seed, "x"))
        if isinstance(form, jax.Array | np.ndarray):
            assert data(jax.jit(rng.stream, static_argnums=1)(form, "x")) == data(rng.stream(seed, "x"))


def test_streams_are_derived_from_jax_random_key():
    key = jax.random.wrap_key_data(jnp.asarray(rng.words(12345)), impl="threefry2x32")
    assert data(key) == data(jax.random.key(12345, impl="threefry2x32"))
    assert rng.stream(0, "x").dtype == jax.random.key(0, impl="threefry2x32").dtype


def test_all_64_bits_of_a_seed_count():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2, -(2**63) + 1]
    assert len({tuple(data(rng.stream(seed, "x"))) for seed in seeds}) == len(seeds)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(UserError, match="64 bits"):
            rng.stream(seed, "x")


def test_names_make_streams_that_are_the_same_in_every_process():
    names = ["init", "dropout", "sample", "data", ""]
    keys = [data(rng.stream(0, name)) for name in names]
    assert len({tuple(key) for key in keys}) == len(names)
    show = f"[jax.random.key_data(rng.stream(0, name)).tolist() for name in {names}]"
    code = f"import jax; from minigpt_jax import rng; print({show})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(keys)


def test_at_folds_in_one_index_after_the_other():
    key = rng.stream(3, "x")
    expected = jax.random.fold_in(jax.random.fold_in(key, 5), 7)
    assert data(rng.at(key, 5, 7)) == data(rng.at(rng.at(key, 5), 7)) == data(expected)
    assert data(rng.at(key)) == data(key)
    assert data(rng.at(key, 5, 7)) != data(rng.at(key, 7, 5))


def test_at_broadcasts():
    key = rng.stream(3, "x")
    rows, places = np.array([4, 2**32 - 1], np.uint32), jnp.arange(3)
    grid = jax.jit(lambda key: rng.at(key, rows[:, None], places[None]))(key)
    assert grid.shape == (2, 3)
    assert data(grid) == [[data(rng.at(key, row, place)) for place in range(3)] for row in rows]
