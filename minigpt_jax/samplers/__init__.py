"""Sampling: from logits to tokens, by any method, for any model that can be stepped.

A model is two functions, `prefill(tokens_BT, length_B) -> (logits_BV, hidden_BTD, cache)` and `step(tokens_B, cache,
position_B) -> (logits_BV, hidden_BD, cache)`; a method is one of the dataclasses below, or one of your own that extends
`Sampler`; what is asked of the method is a `Request`. All functions here are pure and meant to be traced in a `jax.jit`
of the caller's, which takes the model's weights as an argument too:

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

One program serves all values in sampler and request; only shapes, the class of the sampler, which of its settings are
None, the bucket of its width, and the processors make another. To see the tokens on the way, jit `start` and `advance`
in place of `decode`, the latter with its state donated, and read `state.tokens`, `state.step` and `state.running`
between calls. Every leaf of a request or a state has rows first (B, or B times the sampler's width), and rows may have
generated different numbers of tokens, so that rows can also be put in the place of others between two calls.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from minigpt_jax.errors import UserError
from minigpt_jax.samplers import beam, contrastive, loop
from minigpt_jax.samplers.base import Sampler
from minigpt_jax.samplers.interface import (
    Output,
    Prefill,
    Processor,
    Request,
    Step,
    TopTokens,
    concatenate,
    request,
)
from minigpt_jax.samplers.methods import (
    METHODS,
    Beam,
    Contrastive,
    Greedy,
    MinP,
    Random,
    TopK,
    TopP,
    Typical,
    create_all,
)
from minigpt_jax.samplers.processors import checked

__all__ = [
    "METHODS",
    "Beam",
    "Contrastive",
    "Greedy",
    "MinP",
    "Output",
    "Prefill",
    "Processor",
    "Random",
    "Request",
    "Sampler",
    "State",
    "Step",
    "TopK",
    "TopP",
    "TopTokens",
    "Typical",
    "advance",
    "checked",
    "concatenate",
    "create_all",
    "decode",
    "halt",
    "request",
    "result",
    "start",
]

State = loop.State | beam.State | contrastive.State


def decode(
    prefill: Prefill,
    step: Step,
    sampler: Sampler,
    request: Request,
    max_new_tokens: int,
    *,
    processors: Sequence[Processor] = (),
    top_logprobs: int = 0,
) -> Output:
    """Samples from start to end.

    Args:
        prefill, step: the model.
        sampler: the method.
        request: prompts and settings, see `request`.
        max_new_tokens: M, the shape of the output; the limits on new tokens in the request must not be above it.
        processors: functions (logits, tokens, length, step) -> logits, see `Processor`; called in this order.
        top_logprobs: N, how many of the most probable tokens to record in the place of each new one.
    """
    state = start(prefill, sampler, request, max_new_tokens, top_logprobs=top_logprobs)
    return result(sampler, request, advance(step, sampler, request, state, max_new_tokens, processors=processors))


def start(prefill: Prefill, sampler: Sampler, request: Request, max_new_tokens: int, *, top_logprobs: int = 0) -> State:
    """Runs the prompts through the model. The arguments are those of `decode`.

    Raises:
        UserError: `top_logprobs` is negative or above the size of the vocabulary.
    """
    request = _arrays(request)
    if not 0 <= top_logprobs <= request.logit_bias.shape[1]:
        raise UserError(
            f"--top-logprobs {top_logprobs} is not allowed: give a whole number from 0 (none) to "
            f"{request.logit_bias.shape[1]}, the vocabulary's size"
        )
    return sampler.driver.start(prefill, sampler, request, max_new_tokens, top_logprobs)


def advance(
    step: Step,
    sampler: Sampler,
    request: Request,
    state: State,
    until: int | Int[Array, ""] | Int[Array, "B"],
    *,
    processors: Sequence[Processor] = (),
) -> State:
    """Goes on until every running row has at least `until` new tokens, a traced value, for all rows or for each.

    In chunks or in one call the tokens are the same. All running rows take part in every step: a row that is ahead of
    the others gets further ahead. The other arguments are those of `decode`.
    """
    return sampler.driver.advance(step, sampler, _arrays(request), state, until, checked(processors))


def result(sampler: Sampler, request: Request, state: State) -> Output:
    """The output so far; of beam search, only hypotheses that have finished."""
    return sampler.driver.result(sampler, _arrays(request), state)


def halt(state: State, rows: Bool[Array, "B"]) -> State:
    """Puts rows to rest between two calls of `advance`, as if they were done."""
    return dataclasses.replace(state, running=state.running & ~rows)


def _arrays(request: Request) -> Request:
    return jax.tree.map(jnp.asarray, request)
