"""Sampling: from logits to tokens, by any method, for any model that can be stepped.

A model is two functions, `prefill(tokens_BT, length_B) -> (logits_BV, hidden_BTD, cache)` and `step(tokens_B, cache,
position_B) -> (logits_BV, hidden_BD, cache)`; a method is one of the dataclasses below; what is asked of the method is
a `Request`. All functions here are pure and meant to be traced in a `jax.jit` of the caller's, which takes the model's
weights as an argument too:

>>> V = 10  # a model that counts: after each token comes the next one
>>> def step(tokens_B, cache, position_B):
...     logits_BV = 9.0 * jax.nn.one_hot((tokens_B + 1) % V, V)
...     return logits_BV, logits_BV, cache
>>> def prefill(tokens_BT, length_B):
...     last_B = tokens_BT[jnp.arange(len(length_B)), length_B - 1]
...     logits_BV, hidden_BD, cache = step(last_B, (), length_B)
...     return logits_BV, hidden_BD[:, None], cache
>>> @jax.jit
... def generate(sampler, request):
...     return decode(prefill, step, sampler, request, max_new_tokens=4)
>>> generate(Greedy(), request([[1, 2], [7]], vocabulary_size=V, max_new_tokens=4)).tokens.tolist()
[[[3, 4, 5, 6]], [[8, 9, 0, 1]]]

One program serves all values in sampler and request; only shapes, the class of the sampler and the bucket of its width
make another. To see the tokens on the way, jit `start` and `advance` in place of `decode`, the latter with its state
donated, and read `state.tokens`, `state.step` and `state.running` between calls.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from minigpt_jax.samplers import beam, contrastive, loop
from minigpt_jax.samplers.interface import Output, Prefill, Request, Step, request
from minigpt_jax.samplers.methods import (
    METHODS,
    Beam,
    Contrastive,
    Greedy,
    MinP,
    Random,
    Sampler,
    TopK,
    TopP,
    Typical,
    create,
    create_all,
)

__all__ = [
    "METHODS",
    "Beam",
    "Contrastive",
    "Greedy",
    "MinP",
    "Output",
    "Prefill",
    "Random",
    "Request",
    "Sampler",
    "State",
    "Step",
    "TopK",
    "TopP",
    "Typical",
    "advance",
    "create",
    "create_all",
    "decode",
    "halt",
    "request",
    "result",
    "start",
]

State = loop.State | beam.State | contrastive.State


def decode(prefill: Prefill, step: Step, sampler: Sampler, request: Request, max_new_tokens: int) -> Output:
    """Sample from start to end.

    Args:
      prefill, step: the model.
      sampler: the method.
      request: prompts and settings, see `request`.
      max_new_tokens: M, the shape of the output; the limits on new tokens in the request must not be above it.
    """
    state = start(prefill, sampler, request, max_new_tokens)
    return result(sampler, request, advance(step, sampler, request, state, max_new_tokens))


def start(prefill: Prefill, sampler: Sampler, request: Request, max_new_tokens: int) -> State:
    """Run the prompts through the model; the rest as in `decode`."""
    return sampler.driver.start(prefill, sampler, jax.tree.map(jnp.asarray, request), max_new_tokens)


def advance(step: Step, sampler: Sampler, request: Request, state: State, until: int | Int[Array, ""]) -> State:
    """Go on until rows have `until` new tokens (a traced value), or are done; in chunks or in one go is the same."""
    return sampler.driver.advance(step, sampler, jax.tree.map(jnp.asarray, request), state, until)


def result(sampler: Sampler, request: Request, state: State) -> Output:
    """What there is so far; of beam search, only hypotheses that have finished."""
    return sampler.driver.result(sampler, jax.tree.map(jnp.asarray, request), state)


def halt(state: State, rows: Bool[Array, "B"]) -> State:
    """Put rows to rest between two calls of `advance`, as if they were done."""
    return dataclasses.replace(state, running=state.running & ~rows)
