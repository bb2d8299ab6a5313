"""Beam search: live and finished hypotheses apart, and an end that is proven.

Each step extends every live hypothesis by its best tokens. Of all these candidates, those that complete a stop sequence
finish if they are among the best K; the best K of the others live on. Finished ones are scored
log-probability / ((5 + length) / 6)^alpha and the best K kept. A row ends at its limit, where the live ones compete
too, or as soon as no live one can come to beat the worst finished one kept, or once bans leave no token to any.

The log-probability of a token is its controlled logit less the logsumexp of the greater, token by token, of controlled
and own logits. Bans and penalties so leave the probabilities of other tokens what the model says, and since no step can
add anything above 0, not even with a bias in a token's favour, a live hypothesis's score is bounded from its sum alone.

Letters: B rows, K hypotheses a row, R = B * K rows of the model's step, those of a row side by side, C candidates of
each hypothesis, V vocabulary, M most new tokens, S = T + M positions of a history.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from minigpt_jax.ops import kv_cache
from minigpt_jax.samplers import choose, loop, processors
from minigpt_jax.samplers.interface import Output, Prefill, Request, Step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Finished:
    """The finished hypotheses of each row, best first; places that are not taken yet have a score of -inf."""

    score: Float[Array, "B K"]
    tokens: Int[Array, "B K S"]
    """Prompt, new tokens, and then anything."""
    logprobs: Float[Array, "B K M"]
    """The model's own log-probability of each new token."""
    length: Int[Array, "B K"]
    """New tokens, the stop sequence included."""
    stopped: Bool[Array, "B K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Live hypotheses all have `step` new tokens."""

    cache: PyTree
    """R rows: all tokens of each live hypothesis."""
    logits: Float[Array, "R V"]
    """The model's, after their last tokens."""
    total: Float[Array, "B K"]
    """Sum of each live hypothesis's log-probabilities, best first; -inf: none lives here."""
    tokens: Int[Array, "B K S"]
    logprobs: Float[Array, "B K M"]
    finished: Finished
    running: Bool[Array, "B"]
    """The search of the row goes on."""
    step: Int[Array, ""]


def start(prefill: Prefill, sampler: Any, request: Request, max_new_tokens: int) -> State:
    """Read the prompts; each row has one live hypothesis, with no new token."""
    logits_BV, _, cache = prefill(request.tokens, request.length)
    blank = loop.blank(request, logits_BV, kv_cache.repeat(cache, sampler.width), max_new_tokens)
    wide = lambda x: jnp.repeat(x[:, None], sampler.width, axis=1)  # noqa: E731
    nothing_BK = jnp.full(wide(blank.count).shape, -jnp.inf, jnp.float32)
    tokens_BKS, logprobs_BKM = wide(blank.tokens), wide(blank.logprobs)
    return State(
        cache=blank.cache,
        logits=kv_cache.repeat(blank.logits, sampler.width),
        total=nothing_BK.at[:, 0].set(0.0),
        tokens=tokens_BKS,
        logprobs=logprobs_BKM,
        finished=Finished(nothing_BK, tokens_BKS, logprobs_BKM, wide(blank.count), wide(blank.stopped)),
        running=blank.running,
        step=blank.step,
    )


def advance(step: Step, sampler: Any, request: Request, state: State, until: Int[Array, ""]) -> State:
    """Go on until hypotheses have `until` new tokens, or no row's search goes on."""

    def unfinished(state: State) -> Array:
        return state.running.any() & (state.step < until)

    def body(state: State) -> State:
        state = _extend(sampler, request, state)
        position_BK1 = jnp.broadcast_to(loop.last_position(request, state.step)[:, None, None], (*state.total.shape, 1))
        tokens_R = jnp.take_along_axis(state.tokens, position_BK1, axis=2).reshape(-1)
        logits_RV, _, cache = step(tokens_R, state.cache, position_BK1.reshape(-1))
        return dataclasses.replace(state, logits=logits_RV.astype(jnp.float32), cache=cache)

    return lax.while_loop(unfinished, body, state)


def result(sampler: Any, request: Request, state: State) -> Output:
    """The finished hypotheses so far, best first."""
    done = state.finished
    found_BK = done.score > -jnp.inf
    length_BK = jnp.where(found_BK, done.length, 0)
    new_BKM = jnp.arange(done.logprobs.shape[2])[None, None] < length_BK[:, :, None]
    return Output(
        tokens=loop.generated(request, done.tokens, request.length[:, None], new_BKM),
        logprobs=jnp.where(new_BKM, done.logprobs, 0.0),
        length=length_BK,
        stopped=done.stopped & found_BK,
        score=done.score,
    )


def length_divisor(length: Any, alpha: Any) -> Any:
    """What a log-probability is divided by (Wu et al. 2016)."""
    return ((5.0 + length) / 6.0) ** alpha


def _extend(sampler: Any, request: Request, state: State) -> State:
    """One more token for every live hypothesis; their logits are still to be found."""
    rows, width = state.total.shape
    length = state.step + 1
    allowed_K = jnp.arange(width) < sampler.num_beams

    # The best tokens of each hypothesis: enough that K are left when those that complete a stop sequence are set apart.
    history_RS, prompt_R = state.tokens.reshape(rows * width, -1), jnp.repeat(request.length, width)
    own_RV = state.logits
    controlled_RV = processors.control(request, own_RV, history_RS, prompt_R, state.step)
    norm_R1 = jax.nn.logsumexp(jnp.maximum(controlled_RV, own_RV), axis=1, keepdims=True)
    values_RC, tokens_RC = choose.top(controlled_RV, min(own_RV.shape[1], width + len(request.stops)))
    own_RC = jnp.take_along_axis(own_RV, tokens_RC, axis=1) - jax.nn.logsumexp(own_RV, axis=1, keepdims=True)
    stops_RC = processors.stops_at(tokens_RC, request.stops, history_RS, prompt_R, state.step)

    # The candidates of a row side by side, and what becomes of a hypothesis that takes one.
    gain_BKC = (values_RC - norm_R1).reshape(rows, width, -1)
    total_BN = (state.total[:, :, None] + gain_BKC).reshape(rows, -1)
    tokens_BN, own_BN, stops_BN = (x.reshape(rows, -1) for x in (tokens_RC, own_RC, stops_RC))
    position_B1 = (request.length + state.step)[:, None]

    def best(total_BN: Array) -> tuple[Array, ...]:
        """Totals, parents, histories, log-probabilities and stops of the best K candidates."""
        total_BK, candidate_BK = lax.top_k(total_BN, width)
        parent_BK = candidate_BK // gain_BKC.shape[2]
        tokens_BKS = _take(state.tokens, parent_BK)
        tokens_BKS = tokens_BKS.at[jnp.arange(rows)[:, None], jnp.arange(width)[None], position_B1].set(
            _take(tokens_BN, candidate_BK)
        )
        logprobs_BKM = _take(state.logprobs, parent_BK).at[:, :, state.step].set(_take(own_BN, candidate_BK))
        total_BK = jnp.where(allowed_K[None], total_BK, -jnp.inf)
        return total_BK, parent_BK, tokens_BKS, logprobs_BKM, _take(stops_BN, candidate_BK)

    def finished(total_BK: Array, tokens_BKS: Array, logprobs_BKM: Array, stopped_BK: Array) -> Finished:
        score_BK = total_BK / length_divisor(length, sampler.length_penalty)
        return Finished(score_BK, tokens_BKS, logprobs_BKM, jnp.full(score_BK.shape, length), stopped_BK)

    ranked_BK, _, tokens_BKS, logprobs_BKM, stopped_BK = best(total_BN)
    stopping = finished(jnp.where(stopped_BK, ranked_BK, -jnp.inf), tokens_BKS, logprobs_BKM, stopped_BK)
    total_BK, parent_BK, tokens_BKS, logprobs_BKM, unstopped_BK = best(jnp.where(stops_BN, -jnp.inf, total_BN))
    at_limit_B = length >= request.limit
    limited = finished(jnp.where(at_limit_B[:, None], total_BK, -jnp.inf), tokens_BKS, logprobs_BKM, unstopped_BK)
    # Where bans leave no hypothesis a token, the live ones end as they are.
    stuck_B = (total_BK.max(axis=1) == -jnp.inf) & (stopping.score.max(axis=1) == -jnp.inf) & (state.step > 0)
    stuck_BK = jnp.where(stuck_B[:, None] & allowed_K[None], state.total, -jnp.inf)
    stuck = Finished(
        stuck_BK / length_divisor(state.step, sampler.length_penalty),
        state.tokens,
        state.logprobs,
        jnp.full(stuck_BK.shape, state.step),
        jnp.zeros(stuck_BK.shape, bool),
    )
    kept = _merge(allowed_K, state.finished, stopping, limited, stuck)

    # Sums only fall, and the divisor changes one way with length: the best that may come is at one of its two ends.
    shortest, longest = (length_divisor(n, sampler.length_penalty) for n in (length + 1, request.limit))
    hope_B = jnp.maximum(total_BK.max(axis=1) / shortest, total_BK.max(axis=1) / longest)
    worst_B = jnp.min(kept.score, axis=1, where=allowed_K[None], initial=jnp.inf)
    parent_R = (jnp.arange(rows)[:, None] * width + parent_BK).reshape(-1)
    return State(
        logits=own_RV,
        cache=kv_cache.reorder(state.cache, parent_R, used=jnp.max(request.length) + state.step),
        total=total_BK,
        tokens=tokens_BKS,
        logprobs=logprobs_BKM,
        finished=jax.tree.map(lambda new, old: _where(state.running, new, old), kept, state.finished),
        running=state.running & ~at_limit_B & (hope_B > worst_B),
        step=length,
    )


def _merge(allowed_K: Array, *groups: Finished) -> Finished:
    """The best of several groups of finished hypotheses, earlier groups first among equals."""
    pool = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *groups)
    score_BK, place_BK = lax.top_k(pool.score, allowed_K.size)
    best = jax.tree.map(lambda leaf: _take(leaf, place_BK), pool)
    return dataclasses.replace(best, score=jnp.where(allowed_K[None], score_BK, -jnp.inf))


def _take(x: Array, index_BK: Array) -> Array:
    """[B, K, ...]: the entries of each row of x [B, N, ...] at its indices."""
    return x[jnp.arange(x.shape[0])[:, None], index_BK]


def _where(rows_B: Array, new: Array, old: Array) -> Array:
    return jnp.where(rows_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
