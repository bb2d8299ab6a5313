"""Contrastive search against its definition (Su et al. 2022), computed from the whole text at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import samplers
from minigpt_jax.ops import kv_cache

V, ROOM, WIDTH, SLOTS = 19, 12, 5, 17
MODEL = FakeModel(hashing(V, SLOTS, width=4), SLOTS)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3, 3], [18, 0]]
LIMITS = [12, 10, 12, 1]

search = jax.jit(functools.partial(samplers.decode, MODEL.prefill, MODEL.step), static_argnums=2)


def run(sampler, **settings):
    request = samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, **settings)
    return jax.tree.map(np.asarray, search(sampler, request, ROOM))


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def by_definition(prompt, limit, stop, k, alpha, banned=()):
    text = list(prompt)
    while len(text) < len(prompt) + limit and not (len(text) > len(prompt) and text[-1] == stop):
        logits = MODEL.logits(text)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        p[list(banned)] = 0
        context = [MODEL.hidden(text[: n + 1]) for n in range(len(text))]
        scores = {}
        for v in np.argsort(-p)[:k]:
            likeness = max(cosine(MODEL.hidden([*text, v]), h) for h in context)
            scores[int(v)] = (1 - alpha) * p[v] - alpha * likeness
        text.append(max(scores, key=scores.__getitem__))
    return text[len(prompt) :]


@pytest.mark.parametrize("k", [1, 2, 3, 4, V])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6, 1.0])
def test_it_is_what_its_definition_says(k, alpha):
    output = run(samplers.Contrastive(k, alpha), stops=[[5]])
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        expected = by_definition(prompt, limit, 5, k, alpha)
        assert output.tokens[row, 0, : output.length[row, 0]].tolist() == expected
        assert output.stopped[row, 0] == (expected[-1] == 5)


def test_the_definition_is_put_to_the_test():
    """The cases above are not all greedy, and some end early."""
    texts = [tuple(by_definition(PROMPTS[1], 10, 5, k, 0.6)) for k in (1, 2, 3, 4)]
    assert len(set(texts)) == 4
    assert any(len(by_definition(p, 10, 5, k, 0.1)) < 10 for p in PROMPTS for k in (1, 2, 3, 4))


@pytest.mark.parametrize("sampler", [samplers.Contrastive(1, 0.6), samplers.Contrastive(4, 0.0)])
def test_one_candidate_or_no_penalty_is_greedy(sampler):
    greedy = run(samplers.Greedy(), stops=[[5]])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), run(sampler, stops=[[5]]), greedy)


def test_banned_tokens_leave_the_probabilities_of_others():
    bias = np.zeros(V)
    banned = [0, 5, 6, 7, 8, 9]
    bias[banned] = -np.inf
    output = run(samplers.Contrastive(4, 0.4), logit_bias=bias)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        assert output.tokens[row, 0, :limit].tolist() == by_definition(prompt, limit, None, 4, 0.4, banned)


def test_candidates_beyond_what_is_allowed_are_not_taken():
    bias = np.full(V, -np.inf)
    bias[[3, 11]] = 0
    output = run(samplers.Contrastive(4, 1.0), logit_bias=bias)
    assert set(output.tokens[0, 0]) <= {3, 11}


def test_a_layered_cache_gives_the_same_as_any_other():
    """`adopt` copies one slot of a `kv_cache.Layer`, and whole rows of anything else."""

    def prefill(tokens, length):
        logits, hidden, cache = MODEL.prefill(tokens, length)
        keys = cache["read"][:, None, :, None].astype(jnp.float32)
        return logits, hidden, (kv_cache.Layer(keys, -keys),)

    def step(tokens, cache, position):
        read = cache[0].keys[:, 0, :, 0]
        logits, hidden, _ = MODEL.step(tokens, {"read": read.astype(jnp.int32)}, position)
        new = tokens[:, None, None, None].astype(jnp.float32)
        return logits, hidden, (kv_cache.write(cache[0], new, -new, position),)

    request = samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH)
    for sampler in (samplers.Contrastive(3, 0.6), samplers.Beam(3, 0.6)):
        layered = jax.jit(functools.partial(samplers.decode, prefill, step), static_argnums=2)(sampler, request, ROOM)
        jax.tree.map(np.testing.assert_array_equal, layered, search(sampler, request, ROOM))
