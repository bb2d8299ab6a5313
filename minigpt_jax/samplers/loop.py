"""The while_loop of the methods that pick one token a row at a time.

Letters: B rows, T prompt positions, V vocabulary, M most new tokens, S = T + M positions of a row's history.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from minigpt_jax import rng
from minigpt_jax.samplers import processors
from minigpt_jax.samplers.interface import Output, Prefill, Request, Step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What changes from token to token. Running rows have all generated `step` tokens, the others are at rest."""

    cache: PyTree
    """All but the last token of each row."""
    tokens: Int[Array, "B S"]
    """Prompt, new tokens, padding."""
    logprobs: Float[Array, "B M"]
    """The model's own log-probability of each new token."""
    count: Int[Array, "B"]
    """New tokens."""
    stopped: Bool[Array, "B"]
    """A stop sequence is complete."""
    running: Bool[Array, "B"]
    """There are tokens to come."""
    step: Int[Array, ""]
    """Tokens that each running row has generated."""


AnyState = TypeVar("AnyState", bound=State)


def start(prefill: Prefill, sampler: Any, request: Request, max_new_tokens: int) -> State:
    """Read the prompts and pick each row's first token."""
    logits_BV, _, cache = prefill(request.tokens, request.length)
    return _pick(sampler, request, blank(request, cache, max_new_tokens), logits_BV)


def advance(step: Step, sampler: Any, request: Request, state: State, until: Int[Array, ""]) -> State:
    """Go on until rows have `until` new tokens, or none runs any more."""

    def unfinished(state: State) -> Array:
        return state.running.any() & (state.step < until)

    def body(state: State) -> State:
        position_B = last_position(request, state.step)
        tokens_B = jnp.take_along_axis(state.tokens, position_B[:, None], axis=1)[:, 0]
        logits_BV, _, cache = step(tokens_B, state.cache, position_B)
        return _pick(sampler, request, dataclasses.replace(state, cache=cache), logits_BV)

    return lax.while_loop(unfinished, body, state)


def result(sampler: Any, request: Request, state: State) -> Output:
    """The tokens so far."""
    new_BM = jnp.arange(state.logprobs.shape[1])[None] < state.count[:, None]
    return Output(
        tokens=generated(request, state.tokens, request.length, new_BM)[:, None],
        logprobs=state.logprobs[:, None],
        length=state.count[:, None],
        stopped=state.stopped[:, None],
        score=state.logprobs.sum(axis=1)[:, None],
    )


def blank(request: Request, cache: PyTree, max_new_tokens: int) -> State:
    """The state before the first token."""
    rows, width = request.tokens.shape
    position_1T = jnp.arange(width)[None]
    prompt_BT = jnp.where(position_1T < request.length[:, None], request.tokens, request.pad_id)
    return State(
        cache=cache,
        tokens=jnp.pad(prompt_BT, ((0, 0), (0, max_new_tokens)), constant_values=request.pad_id),
        logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        count=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        running=jnp.asarray(request.limit) > 0,
        step=jnp.zeros((), jnp.int32),
    )


def append(request: Request, state: AnyState, tokens_B: Array, logprobs_B: Array) -> AnyState:
    """Give each running row its next token, and see which rows end with it."""
    stops_B = processors.stops_at(tokens_B[:, None], request.stops, state.tokens, request.length, state.step)[:, 0]
    stops_B &= state.running
    rows = jnp.arange(tokens_B.shape[0])
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, request.length + state.step].set(
            jnp.where(state.running, tokens_B, request.pad_id)
        ),
        logprobs=state.logprobs.at[:, state.step].set(jnp.where(state.running, logprobs_B, 0.0)),
        count=state.count + state.running,
        stopped=state.stopped | stops_B,
        running=state.running & ~stops_B & (state.step + 1 < request.limit),
        step=state.step + 1,
    )


def last_position(request: Request, step: Array) -> Array:
    """Position of each row's newest token after `step` of them; rows at rest stay within their limit."""
    return request.length + jnp.clip(step, 0, request.limit) - 1


def generated(request: Request, tokens: Array, length: Array, new: Array) -> Array:
    """The new tokens of rows of tokens [.., S], and padding where `new` [.., M] is false."""
    position = length[..., None] + jnp.arange(new.shape[-1]).reshape(*[1] * length.ndim, -1)
    return jnp.where(new, jnp.take_along_axis(tokens, position, axis=-1), request.pad_id)


def _pick(sampler: Any, request: Request, state: State, logits_BV: Array) -> State:
    own_BV = logits_BV.astype(jnp.float32)
    position_B = request.length + state.step
    key_B = rng.at(rng.stream(request.seed, "sample"), request.row_id, position_B)
    controlled_BV = processors.control(request, own_BV, state.tokens, request.length, state.step)
    tokens_B = sampler.pick(controlled_BV, key_B)
    chosen_B = jnp.take_along_axis(own_BV, tokens_B[:, None], axis=1)[:, 0]
    return append(request, state, tokens_B, chosen_B - jax.nn.logsumexp(own_BV, axis=1))
