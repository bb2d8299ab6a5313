"""Rows of different requests in one batch: what each asks for is its own, and they need not be at the same step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import samplers

V, ROOM, WIDTH = 19, 12, 5
MODEL = FakeModel(hashing(V, WIDTH + ROOM, width=4), WIDTH + ROOM)
SAMPLERS = [samplers.Random(1.5), samplers.TopP(0.8), samplers.Beam(3, 0.6), samplers.Contrastive(3, 0.3)]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)

BIAS = np.zeros(V)
BIAS[[1, 2, 3, 4]] = [-np.inf, 2.0, -1.0, 1.0]
CALLS = [
    {"prompt": [4, 2, 9], "limit": 12, "seed": 1},
    {"prompt": [7], "limit": 9, "seed": 2**40, "repetition_penalty": 3.0, "row_ids": [5]},
    {"prompt": [3, 3, 3, 3, 3], "limit": 12, "stops": [[5], [9, 2], [6], [8], [10]], "min_new_tokens": 3},
    {"prompt": [1, 2], "limit": 7, "no_repeat_ngram": 1, "logit_bias": BIAS},
    {"prompt": [6, 6], "limit": 12, "presence_penalty": 4.0, "no_repeat_ngram": 3, "pad_id": 18},
    {"prompt": [2, 2, 2], "limit": 11, "frequency_penalty": 3.0, "stops": [[0], [1, 1]], "min_new_tokens": 1},
    {"prompt": [8, 1], "limit": 5, "stops": [[token] for token in range(V)]},
]

start = jax.jit(functools.partial(samplers.start, MODEL.prefill), static_argnums=2)
advance = jax.jit(functools.partial(samplers.advance, MODEL.step))
result = jax.jit(samplers.result)


def request(call):
    settings = {name: value for name, value in call.items() if name not in ("prompt", "limit")}
    return samplers.request([call["prompt"]], vocabulary_size=V, max_new_tokens=call["limit"], width=WIDTH, **settings)


def together(calls):
    return samplers.concatenate([request(call) for call in calls])


def outcome(sampler, request, state):
    return jax.tree.map(np.asarray, result(sampler, request, state))


def assert_row_equals(output, row, expected):
    """To the last bits of the figures, which may depend on the batch size; exactly in the tokens."""
    for name in ("tokens", "length", "stopped"):
        np.testing.assert_array_equal(getattr(output, name)[row], getattr(expected, name)[0])
    for name in ("logprobs", "score"):
        np.testing.assert_allclose(getattr(output, name)[row], getattr(expected, name)[0], rtol=1e-5)


@functools.cache
def alone(sampler):
    """What each call gives in a batch of its own."""
    outputs = []
    for call in CALLS:
        # Stops are padded as in the batch of all, so that one program serves every call.
        only = jax.tree.map(lambda leaf: leaf[:1], samplers.concatenate([request(call), *map(request, CALLS)]))
        outputs.append(outcome(sampler, only, advance(sampler, only, start(sampler, only, ROOM), ROOM)))
    return outputs


@every_sampler
def test_rows_with_settings_of_their_own_share_a_batch(sampler):
    batch = together(CALLS)
    output = outcome(sampler, batch, advance(sampler, batch, start(sampler, batch, ROOM), ROOM))
    for row, expected in enumerate(alone(sampler)):
        assert_row_equals(output, row, expected)


def test_the_settings_of_the_test_matter():
    changed = 0
    for call, output in zip(CALLS, alone(SAMPLERS[0]), strict=True):
        plain = together([{"prompt": call["prompt"], "limit": call["limit"], "seed": call.get("seed", 0)}, *CALLS])
        only = jax.tree.map(lambda leaf: leaf[:1], plain)
        other = outcome(SAMPLERS[0], only, advance(SAMPLERS[0], only, start(SAMPLERS[0], only, ROOM), ROOM))
        changed += not np.array_equal(output.tokens, other.tokens)
    assert changed == len(CALLS) - 1  # the first call asks for nothing


def replaced(tree, rows, other):
    """A request or state whose `rows` are another one's; a leaf may have several rows for each."""

    def put(leaf, new):
        size = leaf.shape[0] // len(CALLS)
        index = (np.asarray(rows)[:, None] * size + np.arange(size)[None]).reshape(-1)
        return jnp.asarray(leaf).at[index].set(jnp.asarray(new)[index])

    return jax.tree.map(put, tree, other)


@every_sampler
def test_rows_may_join_while_others_are_halfway(sampler):
    """Some calls begin, and after four tokens the others take the places of idle rows."""
    late, batch = [1, 3, 4], together(CALLS)
    idle = together([{**call, "limit": 0} for call in CALLS])
    first = replaced(batch, late, idle)
    state = advance(sampler, first, start(sampler, first, ROOM), 4)
    assert {0, 4} <= {*np.asarray(state.step).tolist()}

    state = replaced(state, late, start(sampler, batch, ROOM))
    for _ in range(ROOM // 2):
        state = advance(sampler, batch, state, np.asarray(state.step) + 2)
    assert not np.asarray(state.running).any()
    output = outcome(sampler, batch, state)
    for row, expected in enumerate(alone(sampler)):
        assert_row_equals(output, row, expected)
