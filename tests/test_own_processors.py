"""Logit processors of the user's own: pure functions (logits, tokens, length, step) -> logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import samplers
from minigpt_jax.errors import UserError

V, ROOM, WIDTH = 13, 8, 4
MODEL = FakeModel(hashing(V, WIDTH + ROOM, width=3), WIDTH + ROOM)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3]]
LIMITS = [8, 5, 7]
SAMPLERS = [
    samplers.Greedy(),
    samplers.Random(1.5),
    samplers.TopP(0.8),
    samplers.Beam(3, 0.6),
    samplers.Contrastive(3, 0.3),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)


@functools.partial(jax.jit, static_argnums=2)
def decode(sampler, request, processors):
    return samplers.decode(MODEL.prefill, MODEL.step, sampler, request, ROOM, processors=processors)


def search(sampler, *processors, **settings):
    request = samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, **settings)
    return jax.tree.map(np.asarray, decode(sampler, request, processors))


def forced(logits, tokens, length, step):
    """One token is allowed: the sum of the newest token, the prompt's length and twice the tokens so far."""
    newest = jnp.take_along_axis(tokens, (length + step - 1)[:, None], axis=1)[:, 0]
    only = (newest + length + 2 * step) % logits.shape[1]
    return jnp.where(jnp.arange(logits.shape[1])[None] == only[:, None], logits, -jnp.inf)


@every_sampler
def test_a_processor_sees_each_rows_history(sampler):
    output = search(sampler, forced)
    for prompt, limit, tokens, length in zip(PROMPTS, LIMITS, output.tokens[:, 0], output.length[:, 0], strict=True):
        text = list(prompt)
        for step in range(limit):
            text.append((text[-1] + len(prompt) + 2 * step) % V)
        assert tokens[:length].tolist() == text[len(prompt) :]


def test_processors_come_after_the_bias_and_in_order():
    """What the bias bans can be allowed again, and the last processor has the last word."""

    def allow(logits, tokens, length, step):
        return jnp.where(jnp.arange(V)[None] == 5, 1.0, logits)

    def prefer(logits, tokens, length, step):
        return logits.at[:, 6].set(2.0)

    bias = np.full(V, -np.inf)
    bias[2] = -3.0
    for processors, token in (((), 2), ((allow,), 5), ((allow, prefer), 6), ((prefer, allow), 6)):
        output = search(samplers.Greedy(), *processors, logit_bias=bias)
        assert set(output.tokens[:, 0][np.arange(ROOM)[None] < output.length]) == {token}


def test_processors_come_before_the_temperature():
    """A gap of 40 between two tokens is one of 4 at temperature 10, which leaves the other a chance of 1.8%."""

    def two(logits, tokens, length, step):
        return jnp.full_like(logits, -jnp.inf).at[:, 5].set(40.0).at[:, 6].set(0.0)

    drawn = [search(samplers.Random(10.0), two, seed=seed).tokens[:, 0, :5] for seed in range(60)]
    share = np.mean(np.array(drawn) == 6)
    assert share == pytest.approx(1 / (1 + np.exp(4)), abs=0.012)
    assert share > 0


@every_sampler
def test_logprobs_stay_the_models_own(sampler):
    output = search(sampler, forced)
    for prompt, tokens, logprobs, length in zip(
        PROMPTS, output.tokens[:, 0], output.logprobs[:, 0], output.length[:, 0], strict=True
    ):
        text = list(prompt)
        for token, logprob in zip(tokens[:length], logprobs[:length], strict=True):
            logits = MODEL.logits(text)
            assert logprob == pytest.approx(logits[token] - np.log(np.sum(np.exp(logits))), abs=1e-5)
            text.append(token)


@every_sampler
def test_a_row_that_processors_leave_nothing_ends(sampler):
    def twice(logits, tokens, length, step):
        return jnp.where((step < 2)[:, None], logits, -jnp.inf)

    output = search(sampler, twice, seed=1)
    assert output.length[:, 0].tolist() == [2, 2, 2]
    assert not output.stopped.any()


def of_wrong_shape(logits, tokens, length, step):
    return logits[:, 0]


def of_nothing(logits, tokens, length, step):
    return None


def of_three(logits, tokens, length):
    return logits


def branching(logits, tokens, length, step):
    return logits if step[0] > 2 else -logits


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, logits, tokens, length, step):
        return logits


@pytest.mark.parametrize(
    ("processors", "words"),
    [
        ([of_wrong_shape], ["of_wrong_shape", "of shape [3]", "[B, V], here [3, 13]"]),
        (
            [of_three],
            ["the processor of_three is called with (logits, tokens, length, step), but its", "(logits, tokens, "],
        ),
        ([branching], ["the processor branching (", __file__, "TracerBoolConversionError", "use jnp.where"]),
        ([of_nothing], ["of_nothing", "NoneType"]),
        (["forced"], ["'forced'", "not callable"]),
        ([Unhashable()], ["Unhashable", "hash", "@dataclass(frozen=True)"]),
    ],
)
def test_mistakes_are_told_in_one_line(processors, words):
    request = samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH)
    decode = jax.jit(
        lambda request: samplers.decode(
            MODEL.prefill, MODEL.step, samplers.Greedy(), request, ROOM, processors=processors
        )
    )
    with pytest.raises(UserError) as error:
        decode(request)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
