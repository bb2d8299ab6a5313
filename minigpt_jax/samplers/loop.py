"""The while_loop of the methods that pick one token a row at a time.

Letters: B rows, T prompt positions, V vocabulary, M most new tokens, S = T + M positions of a row's history.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from minigpt_jax import rng
from minigpt_jax.samplers import processors
from minigpt_jax.samplers.interface import Output, Prefill, Request, Step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What changes from token to token. Running rows have all generated `step` tokens, the others are at rest."""

    cache: PyTree
    """All tokens of each row."""
    logits: Float[Array, "B V"]
    """The model's, after the last token."""
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
    """Read the prompts; no token is picked yet."""
    logits_BV, _, cache = prefill(request.tokens, request.length)
    return blank(request, logits_BV, cache, max_new_tokens)


def advance(step: Step, sampler: Any, request: Request, state: State, until: int | Int[Array, ""]) -> State:
    """Go on until rows have `until` new tokens, or none runs any more."""

    def unfinished(state: State) -> Array:
        return state.running.any() & (state.step < until)

    def body(state: State) -> State:
        controlled_BV = processors.control(request, state.logits, state.tokens, request.length, state.step)
        picked_B = sampler.pick(controlled_BV, keys(request, state.step))
        # Where nothing is allowed, whatever was picked has a logit of -inf.
        allowed_B = controlled_BV[jnp.arange(picked_B.size), picked_B] > -jnp.inf
        state = append(request, state, picked_B, allowed_B)
        # Picking first and stepping after wastes the very last step. The other way round, picking would have to be
        # compiled twice; and a condition on the step would copy the cache.
        position_B = last_position(request, state.step)
        tokens_B = jnp.take_along_axis(state.tokens, position_B[:, None], axis=1)[:, 0]
        logits_BV, _, cache = step(tokens_B, state.cache, position_B)
        return dataclasses.replace(state, logits=logits_BV.astype(jnp.float32), cache=cache)

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


def blank(request: Request, logits: Float[Array, "B V"], cache: PyTree, max_new_tokens: int) -> State:
    """The state before the first token."""
    rows, width = request.tokens.shape
    position_1T = jnp.arange(width)[None]
    prompt_BT = jnp.where(position_1T < request.length[:, None], request.tokens, request.pad_id)
    return State(
        cache=cache,
        logits=logits.astype(jnp.float32),
        tokens=jnp.pad(prompt_BT, ((0, 0), (0, max_new_tokens)), constant_values=request.pad_id),
        logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        count=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        running=jnp.asarray(request.limit) > 0,
        step=jnp.zeros((), jnp.int32),
    )


def keys(request: Request, step: Int[Array, ""]) -> Key[Array, "B"]:
    """The key of each row's next draw: a function of the seed, the row's id, its copy and the position alone."""
    key_B = rng.at(rng.stream(request.seed, "sample"), request.row_id, request.length + step)
    return jnp.where(jnp.asarray(request.copy) > 0, rng.at(key_B, request.copy), key_B)


def append(request: Request, state: AnyState, tokens: Int[Array, "B"], allowed: Bool[Array, "B"]) -> AnyState:
    """Give each running row its next token, and see which rows end with it.

    A row whose token is not `allowed`, since bans leave it none, ends without it.
    """
    state = dataclasses.replace(state, running=state.running & allowed)
    stops_B = processors.stops_at(tokens[:, None], request.stops, state.tokens, request.length, state.step)[:, 0]
    stops_B &= state.running
    rows = jnp.arange(tokens.shape[0])
    logprobs_B = state.logits[rows, tokens] - jax.nn.logsumexp(state.logits, axis=1)
    kept = lambda new, rest: jnp.where(state.running, new, rest)  # noqa: E731
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, request.length + state.step].set(kept(tokens, request.pad_id)),
        logprobs=state.logprobs.at[:, state.step].set(kept(logprobs_B, 0.0)),
        count=state.count + state.running,
        stopped=state.stopped | stops_B,
        running=state.running & ~stops_B & (state.step + 1 < request.limit),
        step=state.step + 1,
    )


def last_position(request: Request, step: Array) -> Array:
    """Position of each running row's newest token after `step` of them; some position within reach for the others."""
    return jnp.maximum(request.length + jnp.clip(step, 0, request.limit - 1) - 1, 0)


def generated(request: Request, tokens: Array, length: Array, new: Array) -> Array:
    """The new tokens of rows of tokens [.., S], and padding where `new` [.., M] is false."""
    position = length[..., None] + jnp.arange(new.shape[-1]).reshape(*[1] * length.ndim, -1)
    return jnp.where(new, jnp.take_along_axis(tokens, position, axis=-1), request.pad_id)
