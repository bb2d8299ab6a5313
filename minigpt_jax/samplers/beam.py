"""Beam search, with separate live and finished hypotheses, and a bound that shows when it may end.

Each step extends every live hypothesis by its best tokens. Of all these candidates, those that complete a stop sequence
finish if they are among the best K, and the best K of the others stay live. Finished hypotheses are scored by
log-probability / ((5 + length) / 6)^alpha, and the best K are kept. A row's search ends at its limit, where the live
hypotheses count as finished too; or as soon as no live hypothesis can beat the worst finished one that is kept; or if
all tokens are banned.

The log-probability of a token is its controlled logit minus the logsumexp of the elementwise maximum of the controlled
logits and the model's own. So bans and penalties do not change the probabilities of other tokens, and no step adds a
positive number, even if a bias favours a token. A live hypothesis's sum therefore bounds its score.

Letters: B rows, K hypotheses per row, R = B * K rows of the model's step, those of a row side by side, C candidates of
each hypothesis, V vocabulary, M maximum number of new tokens, S = T + M positions of a history, N most probable tokens
to record.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from minigpt_jax.ops import kv_cache, reduce
from minigpt_jax.samplers import loop, processors, selection
from minigpt_jax.samplers.interface import Output, Prefill, Processor, Request, Step, TopTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Texts:
    """The texts of hypotheses."""

    tokens: Int[Array, "B K S"]
    """Prompt, new tokens, and then anything."""
    logprobs: Float[Array, "B K M"]
    """The model's own log-probability of each new token."""
    top: TopTokens | None
    """[B K M N] each: the most probable tokens at each new token's position, if they are recorded."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Finished:
    """The finished hypotheses of each row, best first. Empty slots have a score of -inf."""

    score: Float[Array, "B K"]
    texts: Texts
    length: Int[Array, "B K"]
    """Number of new tokens, including the stop sequence."""
    stopped: Bool[Array, "B K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The live hypotheses of a row all have its `step` new tokens."""

    cache: PyTree
    """R rows: all tokens of each live hypothesis."""
    logits: Float[Array, "R V"]
    """The model's, after their last tokens."""
    total: Float[Array, "B K"]
    """The sum of each live hypothesis's log-probabilities, best first; -inf in an empty slot."""
    texts: Texts
    finished: Finished
    running: Bool[Array, "B"]
    """Whether the search of the row continues."""
    step: Int[Array, "B"]


def start(prefill: Prefill, sampler: Any, request: Request, max_new_tokens: int, top_logprobs: int) -> State:
    """Runs the model over the prompts. Each row gets one live hypothesis, without a new token."""
    logits_BV, _, cache = prefill(request.tokens, request.length)
    blank = loop.blank(request, logits_BV, kv_cache.fork(cache, sampler.width), max_new_tokens, top_logprobs)
    wide = lambda x: jnp.repeat(x[:, None], sampler.width, axis=1)  # noqa: E731
    nothing_BK = jnp.full(wide(blank.step).shape, -jnp.inf, jnp.float32)
    texts = Texts(*jax.tree.map(wide, (blank.tokens, blank.logprobs, blank.top)))
    return State(
        cache=blank.cache,
        logits=kv_cache.repeat(blank.logits, sampler.width),
        total=nothing_BK.at[:, 0].set(0.0),
        texts=texts,
        finished=Finished(nothing_BK, texts, wide(blank.step), wide(blank.stopped)),
        running=blank.running,
        step=blank.step,
    )


def advance(
    step: Step, sampler: Any, request: Request, state: State, until: int | Array, extra: Sequence[Processor]
) -> State:
    """Extends the hypotheses until those of every running row have `until` new tokens."""

    def body(state: State) -> State:
        state = _extend(sampler, request, state, extra)
        position_BK1 = jnp.broadcast_to(loop.last_position(request, state.step)[:, None, None], (*state.total.shape, 1))
        tokens_R = jnp.take_along_axis(state.texts.tokens, position_BK1, axis=2).reshape(-1)
        logits_RV, _, cache = step(tokens_R, state.cache, position_BK1.reshape(-1))
        return dataclasses.replace(state, logits=logits_RV.astype(jnp.float32), cache=cache)

    return lax.while_loop(lambda state: loop.unfinished(state, until), body, state)


def result(sampler: Any, request: Request, state: State) -> Output:
    """The finished hypotheses so far, best first."""
    done = state.finished
    found_BK = done.score > -jnp.inf
    length_BK = jnp.where(found_BK, done.length, 0)
    new_BKM = jnp.arange(done.texts.logprobs.shape[2])[None, None] < length_BK[:, :, None]
    return Output(
        tokens=loop.generated(request.pad_id, done.texts.tokens, request.length[:, None], new_BKM),
        logprobs=jnp.where(new_BKM, done.texts.logprobs, 0.0),
        length=length_BK,
        stopped=done.stopped & found_BK,
        score=done.score,
        top=loop.recorded(request.pad_id, done.texts.top, new_BKM),
    )


def length_divisor(length: Any, alpha: Any) -> Any:
    """The divisor of a log-probability, by the length of its text (Wu et al. 2016)."""
    return ((5.0 + length) / 6.0) ** alpha


def _extend(sampler: Any, request: Request, state: State, extra: Sequence[Processor]) -> State:
    """Appends a token to every live hypothesis. The caller then computes the logits after it."""
    rows, width = state.total.shape
    step_B1, length_B1 = state.step[:, None], state.step[:, None] + 1
    num_beams_B1, length_penalty_B1 = _column(sampler.num_beams), _column(sampler.length_penalty)
    allowed_BK = jnp.broadcast_to(jnp.arange(width)[None] < num_beams_B1, state.total.shape)

    # The best tokens of each hypothesis: enough to leave K of them without those that complete a stop sequence.
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, width, axis=0), request)
    history_RS, step_R = state.texts.tokens.reshape(rows * width, -1), jnp.repeat(state.step, width)
    model_RV = state.logits
    controlled_RV = processors.control(wide, model_RV, history_RS, step_R, extra)
    norm_R1 = reduce.logsumexp(jnp.maximum(controlled_RV, model_RV))[:, None]
    model_norm_R1 = reduce.logsumexp(model_RV)[:, None]
    count = min(model_RV.shape[1], width + request.stops.shape[1])
    values_RC, tokens_RC = selection.top(controlled_RV, count)
    logprobs_RC = jnp.take_along_axis(model_RV, tokens_RC, axis=1) - model_norm_R1
    stops_RC = processors.stops_at(tokens_RC, wide.stops, history_RS, wide.length, step_R)
    top_RN = loop.most_probable(state.texts.top, model_RV, model_norm_R1[:, 0])

    # The candidates of a row, side by side.
    gain_BKC = (values_RC - norm_R1).reshape(rows, width, -1)
    total_BN = (state.total[:, :, None] + gain_BKC).reshape(rows, -1)
    tokens_BN, logprobs_BN, stops_BN = (x.reshape(rows, -1) for x in (tokens_RC, logprobs_RC, stops_RC))
    row_B1, index_1K = jnp.arange(rows)[:, None], jnp.arange(width)[None]

    def best(total_BN: Array) -> tuple[Array, Array, Texts, Array]:
        """Totals, parents, texts and stops of the best K candidates."""
        total_BK, candidate_BK = lax.top_k(total_BN, width)
        parent_BK = candidate_BK // gain_BKC.shape[2]
        put = lambda leaf, at, new: _take(leaf, parent_BK).at[row_B1, index_1K, at].set(new)  # noqa: E731
        texts = Texts(
            tokens=put(state.texts.tokens, request.length[:, None] + step_B1, _take(tokens_BN, candidate_BK)),
            logprobs=put(state.texts.logprobs, step_B1, _take(logprobs_BN, candidate_BK)),
            top=jax.tree.map(
                lambda leaf, new_RN: put(leaf, step_B1, _take(new_RN.reshape(rows, width, -1), parent_BK)),
                state.texts.top,
                top_RN,
            ),
        )
        return jnp.where(allowed_BK, total_BK, -jnp.inf), parent_BK, texts, _take(stops_BN, candidate_BK)

    def finished(total_BK: Array, texts: Texts, length_B1: Array, stopped_BK: Array) -> Finished:
        score_BK = total_BK / length_divisor(length_B1, length_penalty_B1)
        return Finished(score_BK, texts, jnp.broadcast_to(length_B1, score_BK.shape), stopped_BK)

    ranked_BK, _, texts, stopped_BK = best(total_BN)
    stopping = finished(jnp.where(stopped_BK, ranked_BK, -jnp.inf), texts, length_B1, stopped_BK)
    total_BK, parent_BK, texts, unstopped_BK = best(jnp.where(stops_BN, -jnp.inf, total_BN))
    at_limit_B = length_B1[:, 0] >= request.limit
    limited = finished(jnp.where(at_limit_B[:, None], total_BK, -jnp.inf), texts, length_B1, unstopped_BK)
    # If all tokens of all hypotheses are banned, the live ones finish as they are.
    stuck_B = (total_BK.max(axis=1) == -jnp.inf) & (stopping.score.max(axis=1) == -jnp.inf) & (state.step > 0)
    stuck_BK = jnp.where(stuck_B[:, None] & allowed_BK, state.total, -jnp.inf)
    stuck = finished(stuck_BK, state.texts, step_B1, jnp.zeros(stuck_BK.shape, bool))
    kept = _merge(allowed_BK, state.finished, stopping, limited, stuck)

    # Sums only fall, and the divisor is monotonic in the length, so the best possible score is at one of the two ends.
    shortest_B, longest_B = (
        length_divisor(length_B, length_penalty_B1[:, 0]) for length_B in (length_B1[:, 0] + 1, request.limit)
    )
    best_possible_B = jnp.maximum(total_BK.max(axis=1) / shortest_B, total_BK.max(axis=1) / longest_B)
    worst_B = jnp.min(kept.score, axis=1, where=allowed_BK, initial=jnp.inf)
    parent_R = (row_B1 * width + parent_BK).reshape(-1)
    return State(
        logits=model_RV,
        cache=kv_cache.reorder(state.cache, parent_R, used=jnp.max(request.length + state.step)),
        total=total_BK,
        texts=texts,
        finished=jax.tree.map(lambda new, old: _where(state.running, new, old), kept, state.finished),
        running=state.running & ~at_limit_B & (best_possible_B > worst_B),
        step=state.step + state.running,
    )


def _merge(allowed_BK: Array, *groups: Finished) -> Finished:
    """The best of several groups of finished hypotheses. Of equal ones, those of earlier groups come first."""
    pool = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *groups)
    score_BK, index_BK = lax.top_k(pool.score, allowed_BK.shape[1])
    best = jax.tree.map(lambda leaf: _take(leaf, index_BK), pool)
    return dataclasses.replace(best, score=jnp.where(allowed_BK, score_BK, -jnp.inf))


def _column(setting: Any) -> Array:
    """A setting as [B, 1] if rows have values of their own, or else as [1, 1]."""
    return jnp.reshape(setting, (-1, 1))


def _take(x: Array, index_BK: Array) -> Array:
    """[B, K, ...]: the entries of each row of x [B, N, ...] at its indices."""
    return x[jnp.arange(x.shape[0])[:, None], index_BK]


def _where(rows_B: Array, new: Array, old: Array) -> Array:
    return jnp.where(rows_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
