"""The most probable tokens in each new token's place, recorded in the loop."""

import functools

import jax
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import samplers
from minigpt_jax.errors import UserError

V, ROOM, WIDTH = 13, 8, 4
MODEL = FakeModel(hashing(V, WIDTH + ROOM, width=3), WIDTH + ROOM)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3]]
LIMITS = [8, 5, 0]
SAMPLERS = [samplers.Greedy(), samplers.TopP(0.8), samplers.Beam(3, 0.6), samplers.Contrastive(3, 0.3)]


def ban_even(logits, tokens, length, step):
    return logits.at[:, ::2].set(-np.inf)


@functools.partial(jax.jit, static_argnums=2)
def decode(sampler, request, top_logprobs):
    return samplers.decode(
        MODEL.prefill, MODEL.step, sampler, request, ROOM, processors=[ban_even], top_logprobs=top_logprobs
    )


def request(**settings):
    return samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, pad_id=11, **settings)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_they_are_the_models_own_best_in_every_place(sampler):
    """Before any processor, of every hypothesis, with rows that stop early and one that generates nothing."""
    asked = request(stops=[[5, 5], [7], [3]], repetition_penalty=2.0, min_new_tokens=2)
    output = jax.tree.map(np.asarray, decode(sampler, asked, 4))
    assert output.top.tokens.shape == output.top.logprobs.shape == (*output.tokens.shape, 4)
    checked = 0
    for row, prompt in enumerate(PROMPTS):
        for k, length in enumerate(output.length[row]):
            text = list(prompt)
            for n in range(length):
                logits = MODEL.logits(text)
                best = np.argsort(-logits, kind="stable")[:4]
                assert output.top.tokens[row, k, n].tolist() == best.tolist()
                expected = logits[best] - np.log(np.sum(np.exp(logits)))
                np.testing.assert_allclose(output.top.logprobs[row, k, n], expected, atol=1e-5)
                text.append(int(output.tokens[row, k, n]))
                checked += 1
            assert (output.top.tokens[row, k, length:] == 11).all()
            assert not output.top.logprobs[row, k, length:].any()
    assert checked > 5
    assert output.stopped.any()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_recording_changes_nothing_else(sampler):
    asked = request(stops=[[7]])
    plain = decode(sampler, asked, 0)
    assert plain.top is None
    recorded = decode(sampler, asked, 4)
    for name in ("tokens", "length", "stopped"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(recorded, name))
    np.testing.assert_allclose(plain.logprobs, recorded.logprobs, rtol=1e-5)


def test_all_of_the_vocabulary_may_be_asked_for():
    output = decode(samplers.Greedy(), request(), V)
    np.testing.assert_array_equal(np.sort(output.top.tokens[0, 0], axis=1), np.tile(np.arange(V), (ROOM, 1)))


@pytest.mark.parametrize("count", [-1, V + 1])
def test_a_number_that_cannot_be_is_refused(count):
    with pytest.raises(UserError, match=rf"--top-logprobs {count} is not allowed: .* to {V}, the vocabulary's size"):
        decode(samplers.Greedy(), request(), count)
