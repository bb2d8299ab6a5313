"""Sampling: from logits to tokens, by any method, for any model that can be stepped.

A model is two functions, `prefill(tokens_BT, length_B) -> (logits_BV, hidden_BTD, cache)` and `step(tokens_B, cache,
position_B) -> (logits_BV, hidden_BD, cache)`. A method is one of the dataclasses below, or one of your own that extends
`Sampler`. A `Request` holds the prompts and the other settings. All functions here are pure. Call them inside a
`jax.jit` of your own, which also takes the model's weights as an argument:

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

A compiled program serves all values in the sampler and the request. Another program is compiled for other shapes,
another class of sampler, other static settings or settings that are None, another bucket of its width, and other
processors. To read the tokens while they are generated, jit `start` and `advance` instead of `decode`, donate the state
to `advance`, and read `state.tokens`, `state.step` and `state.running` between calls. The first axis of every leaf of a
request or a state is its rows (B, or B times the sampler's width), and rows may have generated different numbers of
tokens. So a caller can replace rows by others between two calls.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from minigpt_jax.errors import UserError
from minigpt_jax.samplers import beam, contrastive, loop
from minigpt_jax.samplers.base import Sampler
from minigpt_jax.samplers.inspection import Inspection, inspect
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
from minigpt_jax.samplers.per_row import per_row
from minigpt_jax.samplers.processors import checked

__all__ = [
    "METHODS",
    "Beam",
    "Contrastive",
    "Greedy",
    "Inspection",
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
    "inspect",
    "per_row",
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
    """Generates the texts of a request from start to end.

    Args:
        prefill, step: the model.
        sampler: the method.
        request: prompts and settings, see `request`.
        max_new_tokens: M, the size of the output. The limits of the request's rows must be at most M.
        processors: functions (logits, tokens, length, step) -> logits, see `Processor`; called in this order.
        top_logprobs: N, the number of most probable tokens to record at the position of each new token.
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
    """Generates until every running row has at least `until` new tokens: a traced value, for all rows or for each.

    Several calls generate the same tokens as one. All running rows take part in every step, so a row that is ahead of
    the others stays ahead. The other arguments are those of `decode`.
    """
    return sampler.driver.advance(step, sampler, _arrays(request), state, until, checked(processors))


def result(sampler: Sampler, request: Request, state: State) -> Output:
    """The output so far. That of beam search has only the hypotheses that have finished."""
    return sampler.driver.result(sampler, _arrays(request), state)


def halt(state: State, rows: Bool[Array, "B"]) -> State:
    """Ends rows between two calls of `advance`."""
    return dataclasses.replace(state, running=state.running & ~rows)


def _arrays(request: Request) -> Request:
    return jax.tree.map(jnp.asarray, request)
