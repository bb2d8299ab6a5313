"""Filters in combination: what `Random` draws from, against a NumPy reference that sorts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chi_square import follows

from minigpt_jax import rng, samplers
from minigpt_jax.samplers import truncation

V, DRAWS, TEMPERATURE = 40, 8_000, 0.8
FILTERS = {"top_k": 25, "top_p": 0.9, "min_p": 0.17, "typical_p": 0.88}
COMBINATIONS = [names for n in range(5) for names in itertools.combinations(FILTERS, n)]
OTHERS = {"top_k": 9, "top_p": 0.6, "min_p": 0.3, "typical_p": 0.5}

LOGITS = np.random.default_rng(3).permutation(np.linspace(-1.3, 1.5, V)) * 1.2
LOGITS[[0, 17, V - 1]] = -np.inf


def reference(logits, temperature, **settings):
    """One filter after the other, each on probabilities that sum to 1, as Hugging Face's warpers do it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = logits / temperature
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        for name in ("top_k", "top_p", "min_p", "typical_p"):
            if (setting := settings.get(name)) is None:
                continue
            if name == "min_p":
                kept = p >= setting * p.max()
            else:
                surprise = -np.log(p)
                distance = np.abs(surprise - np.sum(p * surprise, where=p > 0))
                order = np.argsort(distance if name == "typical_p" else -p, kind="stable")
                size = setting if name == "top_k" else np.searchsorted(np.cumsum(p[order]), setting) + 1
                kept = np.isin(np.arange(V), order[:size])
            p = np.where(kept, p, 0)
            p /= p.sum()
    return p


traces = []


@jax.jit
def pick(sampler, logits, key):
    traces.append(jax.tree.structure(sampler))
    return sampler.pick(logits, key)


def counts(sampler, seed=0):
    key = rng.at(rng.stream(seed, "test"), jnp.arange(DRAWS))
    return np.bincount(pick(sampler, np.tile(LOGITS.astype(np.float32), (DRAWS, 1)), key), minlength=V)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_combined_filters_draw_from_the_reference_distribution(names):
    settings = {name: FILTERS[name] for name in names}
    assert follows(counts(samplers.Random(TEMPERATURE, **settings)), reference(LOGITS, TEMPERATURE, **settings))


def test_the_filters_of_the_test_differ_and_their_order_counts():
    """So that the test above would see a filter that is left out, or that does not see what those before it left."""
    kept = {
        names: np.flatnonzero(reference(LOGITS, TEMPERATURE, **{name: FILTERS[name] for name in names}))
        for names in COMBINATIONS
    }
    assert len({kept[(name,)].size for name in FILTERS}) == 4
    for names in (("top_k", "top_p"), ("top_k", "typical_p"), ("top_p", "typical_p"), ("min_p", "typical_p")):
        assert not np.array_equal(kept[names], np.intersect1d(kept[names[:1]], kept[names[1:]]))
    assert kept["top_p", "min_p"].size < kept["top_p",].size


def test_one_program_serves_all_numbers_and_none_is_another():
    traces.clear()
    for temperature, changes in ((1.0, {}), (0.3, {"top_k": 9}), (2, {"top_p": 1, "min_p": 1}), (0, {"typical_p": 1})):
        counts(samplers.Random(temperature, **{**OTHERS, **changes}))
    assert len(traces) <= 1
    counts(samplers.Random(1.0, top_k=5, typical_p=0.5))
    assert len(set(traces)) == len(traces)


@pytest.mark.parametrize(
    ("shorthand", "random"),
    [
        (samplers.TopK(7, 0.8), samplers.Random(0.8, top_k=7)),
        (samplers.TopP(0.7, 1.3), samplers.Random(1.3, top_p=0.7)),
        (samplers.MinP(0.2, 1.3), samplers.Random(1.3, min_p=0.2)),
        (samplers.Typical(0.6, 0.8), samplers.Random(0.8, typical_p=0.6)),
    ],
    ids=lambda sampler: sampler.name,
)
def test_shorthands_draw_what_random_draws(shorthand, random):
    np.testing.assert_array_equal(counts(shorthand, seed=5), counts(random, seed=5))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_in_larger_vocabularies(seed):
    """Equal logits at the edges too: of them the lowest indices are kept."""
    generator = np.random.default_rng(seed)
    logits = np.round(generator.normal(size=(6, 331)) * np.array([0.3, 1, 2, 3, 5, 9])[:, None], 1).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=2)
    def kept(logits, settings, names):
        logits, last = truncation.truncate(logits, **dict(zip(names, settings, strict=True)))
        return jnp.isfinite(logits) & (True if last is None else last.mask())

    for names, settings in {("top_k", "top_p"): (50, 0.83), ("top_k", "min_p"): (50, 0.021)}.items():
        found = np.asarray(kept(logits, settings, names))
        for row, tokens in zip(logits, found, strict=True):
            p = np.exp(row.astype(np.float64) - row.max())
            order = np.argsort(-row, kind="stable")[:50]
            if "top_p" in names:
                mass = np.cumsum(p[order]) / p[order].sum()
                order = order[: np.searchsorted(mass, 0.83 * (1 - 1e-6)) + 1]
            else:
                order = order[p[order] >= 0.021]
            assert sorted(order) == np.flatnonzero(tokens).tolist()
