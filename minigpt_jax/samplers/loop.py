"""The while_loop of the methods that pick one token per row at a time.

Letters: B rows, T prompt positions, V vocabulary, M maximum number of new tokens, S = T + M positions of a row's
history, N most probable tokens to record.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from minigpt_jax import rng
from minigpt_jax.config import code
from minigpt_jax.errors import UserError
from minigpt_jax.ops import reduce
from minigpt_jax.samplers import processors, selection
from minigpt_jax.samplers.interface import Output, Prefill, Processor, Request, Step, TopTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What changes with each token. Rows are the first axis of every leaf, and their numbers of tokens may differ."""

    cache: PyTree
    """All tokens of each row."""
    logits: Float[Array, "B V"]
    """The model's, after the last token."""
    tokens: Int[Array, "B S"]
    """Prompt, new tokens, padding."""
    logprobs: Float[Array, "B M"]
    """The model's own log-probability of each new token."""
    top: TopTokens | None
    """[B M N] each: the most probable tokens at each new token's position, if they are recorded."""
    step: Int[Array, "B"]
    """Number of new tokens."""
    stopped: Bool[Array, "B"]
    """Whether a stop sequence is complete."""
    running: Bool[Array, "B"]
    """Whether the row gets more tokens."""


AnyState = TypeVar("AnyState", bound=State)


def start(prefill: Prefill, sampler: Any, request: Request, max_new_tokens: int, top_logprobs: int) -> State:
    """Runs the model over the prompts. No token is picked yet."""
    logits_BV, _, cache = prefill(request.tokens, request.length)
    return blank(request, logits_BV, cache, max_new_tokens, top_logprobs)


def advance(
    step: Step, sampler: Any, request: Request, state: State, until: int | Array, extra: Sequence[Processor]
) -> State:
    """Picks tokens until every running row has at least `until` new ones."""

    def body(state: State) -> State:
        controlled_BV = processors.control(request, state.logits, state.tokens, state.step, extra)
        picked_B = picked(sampler, controlled_BV, keys(request, state.step))
        # If all tokens of a row are banned, the picked one has a logit of -inf.
        allowed_B = controlled_BV[jnp.arange(picked_B.size), picked_B] > -jnp.inf
        state = append(request, state, picked_B, allowed_B)
        # This order wastes the last step of the model. The other order would compile the picking twice, and a condition
        # around the step would copy the cache.
        position_B = last_position(request, state.step)
        tokens_B = jnp.take_along_axis(state.tokens, position_B[:, None], axis=1)[:, 0]
        logits_BV, _, cache = step(tokens_B, state.cache, position_B)
        return dataclasses.replace(state, logits=logits_BV.astype(jnp.float32), cache=cache)

    return lax.while_loop(lambda state: unfinished(state, until), body, state)


def result(sampler: Any, request: Request, state: State) -> Output:
    """The tokens so far."""
    new_BM = jnp.arange(state.logprobs.shape[1])[None] < state.step[:, None]
    return Output(
        tokens=generated(request.pad_id, state.tokens, request.length, new_BM)[:, None],
        logprobs=state.logprobs[:, None],
        length=state.step[:, None],
        stopped=state.stopped[:, None],
        score=state.logprobs.sum(axis=1)[:, None],
        top=recorded(request.pad_id, jax.tree.map(lambda leaf: leaf[:, None], state.top), new_BM[:, None]),
    )


def blank(
    request: Request, logits: Float[Array, "B V"], cache: PyTree, max_new_tokens: int, top_logprobs: int
) -> State:
    """The state before the first token."""
    rows, width = request.tokens.shape
    position_1T = jnp.arange(width)[None]
    pad_B1 = request.pad_id[:, None]
    prompt_BT = jnp.where(position_1T < request.length[:, None], request.tokens, pad_B1)
    record = (rows, max_new_tokens, top_logprobs)
    return State(
        cache=cache,
        logits=logits.astype(jnp.float32),
        tokens=jnp.concatenate([prompt_BT, jnp.broadcast_to(pad_B1, (rows, max_new_tokens))], axis=1),
        logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        top=TopTokens(jnp.zeros(record, jnp.int32), jnp.zeros(record, jnp.float32)) if top_logprobs else None,
        step=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        running=request.limit > 0,
    )


def unfinished(state: Any, until: int | Array) -> Bool[Array, ""]:
    """Whether a running row has fewer than `until` new tokens."""
    return jnp.any(state.running & (state.step < until))


def keys(request: Request, step: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of each row's next draw. It depends only on the row's seed, id, copy and position."""
    stream_B = jax.vmap(lambda seed: rng.stream(seed, "sample"))(request.seed)
    key_B = rng.at(stream_B, request.row_id, request.length + step)
    return jnp.where(request.copy > 0, rng.at(key_B, request.copy), key_B)


def append(request: Request, state: AnyState, tokens: Int[Array, "B"], allowed: Bool[Array, "B"]) -> AnyState:
    """Appends the next token to each running row, and ends the rows that are complete.

    A row whose token is not `allowed` ends without it.
    """
    running_B = state.running & allowed
    stops_B = processors.stops_at(tokens[:, None], request.stops, state.tokens, request.length, state.step)[:, 0]
    stops_B &= running_B
    rows = jnp.arange(tokens.shape[0])
    norm_B = reduce.logsumexp(state.logits)
    # In a row that has ended, this writes padding after its last token.
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, request.length + state.step].set(jnp.where(running_B, tokens, request.pad_id)),
        logprobs=state.logprobs.at[rows, state.step].set(
            jnp.where(running_B, state.logits[rows, tokens] - norm_B, 0.0)
        ),
        top=jax.tree.map(
            lambda seen, new: seen.at[rows, state.step].set(new),
            state.top,
            most_probable(state.top, state.logits, norm_B),
        ),
        step=state.step + running_B,
        stopped=state.stopped | stops_B,
        running=running_B & ~stops_B & (state.step + 1 < request.limit),
    )


def most_probable(top: TopTokens | None, logits: Float[Array, "B V"], norm: Float[Array, "B"]) -> TopTokens | None:
    """The most probable tokens [B N] at the next position; None if `top`, the record, is None."""
    if top is None:
        return None
    values_BN, tokens_BN = selection.top(logits, top.tokens.shape[-1])
    return TopTokens(tokens_BN, values_BN - norm[:, None])


def recorded(pad_id: Int[Array, "B"], top: TopTokens | None, new: Bool[Array, "B K M"]) -> TopTokens | None:
    """The record [B K M N] with padding where `new` is false."""
    if top is None:
        return None
    return TopTokens(
        jnp.where(new[..., None], top.tokens, pad_id[:, None, None, None]),
        jnp.where(new[..., None], top.logprobs, 0.0),
    )


def last_position(request: Request, step: Int[Array, "B"]) -> Int[Array, "B"]:
    """The position of each running row's newest token. Other rows get some position within their limit."""
    return jnp.maximum(request.length + jnp.clip(step, 0, request.limit - 1) - 1, 0)


def generated(pad_id: Array, tokens: Array, length: Array, new: Array) -> Array:
    """The new tokens of rows of tokens [.., S], and padding where `new` [.., M] is false."""
    position = length[..., None] + jnp.arange(new.shape[-1]).reshape(*[1] * length.ndim, -1)
    pad = pad_id.reshape(-1, *[1] * (new.ndim - 1))
    return jnp.where(new, jnp.take_along_axis(tokens, position, axis=-1), pad)


def picked(sampler: Any, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
    """The sampler's tokens, whose shape and type are checked, because `pick` may be the user's own."""
    mend = 'use jnp.where on settings, or declare one static: field(metadata={"static": True})'
    code.check_call(sampler.pick, "logits, key", f"{sampler.name}.pick")
    picked = jnp.asarray(processors.traced(sampler.pick, f"{sampler.name}.pick", mend, logits, key))
    if picked.shape != key.shape or not jnp.issubdtype(picked.dtype, jnp.integer):
        raise UserError(
            f"{sampler.name}.pick returned {picked.dtype}{list(picked.shape)}: it must return one token id per row, "
            f"a whole number each, as an array of shape {list(key.shape)}"
        )
    return picked.astype(jnp.int32)
