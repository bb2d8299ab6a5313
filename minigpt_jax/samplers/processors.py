"""Logit processors: what may be drawn, and how likely.

They are applied in this order: `control` (penalties, bias and bans, alike for every method), then the temperature, then
one of `top_k`, `top_p`, `min_p` and `typical`. What may not be drawn gets a logit of -inf; but where that depends on
ranks it would take a sort, and is not worked out for all tokens, only for those that are drawn: see `choose.Kept`.

Letters: B rows, V vocabulary, S positions of a row's history (prompt and generated tokens, contiguous), K candidates,
E stop sequences, L their greatest length.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.samplers.choose import Kept, blocks
from minigpt_jax.samplers.interface import Request

# Probability masses are sums of V rounded numbers: a mass this near to p has reached it.
_ROUNDING = 1e-6

Logits = Float[Array, "B V"]


def top_k(logits: Logits, k: Any) -> Kept:
    """Keep the k most probable tokens."""
    # The k-th greatest of any k tokens or more is a bar; that of the best of 64 or so blocks is near the true one.
    best_BW = blocks(logits, -jnp.inf).max(axis=1)
    ahead_BW = jnp.sum(best_BW[:, None, :] > best_BW[:, :, None], axis=2)
    bar_B = jnp.min(best_BW, axis=1, where=ahead_BW < k, initial=jnp.inf)
    bar_B = jnp.where(k <= best_BW.shape[1], bar_B, -jnp.inf)
    return Kept(logits, jnp.ones_like(logits), jnp.full(logits.shape[:1], k, jnp.float32), bar_B)


def top_p(logits: Logits, p: Any) -> Kept:
    """Keep the fewest, most probable tokens whose probability mass reaches p (Holtzman et al. 2020)."""
    weight_BV = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return Kept(logits, weight_BV, _share(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def typical(logits: Logits, p: Any) -> Kept:
    """Keep the fewest tokens whose mass reaches p, taking first those whose surprise is nearest the expected one.

    The order is that of |-log p(v) - H|, H being the entropy: locally typical sampling (Meister et al. 2022).
    """
    log_p_BV = jax.nn.log_softmax(logits)
    weight_BV = jnp.exp(log_p_BV)
    entropy_B1 = -jnp.sum(weight_BV * log_p_BV, axis=1, keepdims=True, where=weight_BV > 0)
    score_BV = -jnp.abs(log_p_BV + entropy_B1)
    return Kept(score_BV, weight_BV, _share(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def min_p(logits: Logits, p: Any) -> Logits:
    """Keep the tokens that are at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    least_B1 = logits.max(axis=1, keepdims=True) + jnp.log(p) - _ROUNDING
    return jnp.where(logits >= least_B1, logits, -jnp.inf)


def _share(p: Any, weight_BV: Array) -> Array:
    """The weight at which a set is a share p of all; p = 1 takes all there are."""
    share_B = jnp.maximum(p * weight_BV.sum(axis=1) * (1 - _ROUNDING), jnp.finfo(jnp.float32).tiny)
    return jnp.where(p < 1, share_B, jnp.inf)


def control(
    request: Request, logits: Logits, tokens: Int[Array, "B S"], length: Int[Array, "B"], step: Int[Array, ""]
) -> Logits:
    """Penalties, then bias and bans: what a request asks for whatever the method. Logits come back as float32.

    `tokens` are the rows' histories, of which the first `length` are the prompt and the next `step` are generated.
    What is off costs next to nothing, yet turning it on compiles nothing either.
    """
    penalised = (request.repetition_penalty != 1) | (request.presence_penalty != 0) | (request.frequency_penalty != 0)
    unrepeated = request.no_repeat_ngram > 0
    early = step < request.min_new_tokens

    def when(active: Array, process: Callable[[Logits], Logits], logits: Logits) -> Logits:
        return lax.cond(active, process, lambda logits: logits, logits)

    def apply(logits: Logits) -> Logits:
        logits = when(penalised, lambda x: penalise(request, x, tokens, length, step), logits)
        logits = when(unrepeated, lambda x: ban_ngrams(x, tokens, length + step, request.no_repeat_ngram), logits)
        return when(early, lambda x: ban_stops(x, request.stops, tokens, length, step), logits)

    logits = when(penalised | unrepeated | early, apply, logits.astype(jnp.float32))
    return logits + request.logit_bias[None]


def penalise(
    request: Request, logits: Logits, tokens: Int[Array, "B S"], length: Int[Array, "B"], step: Int[Array, ""]
) -> Logits:
    """Make what is there already less likely (or, by the opposite values, more).

    The repetition penalty (Keskar et al. 2019) divides positive logits and multiplies negative ones, for every token in
    prompt or text; presence and frequency penalties are subtracted, once and for each time, for generated tokens only.
    """
    rows_B1, position_1S = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]
    generated_BS = (position_1S >= length[:, None]) & (position_1S < length[:, None] + step)
    known_BS = position_1S < length[:, None] + step
    count_BV = jnp.zeros(logits.shape, jnp.int32).at[rows_B1, tokens].add(generated_BS.astype(jnp.int32))
    known_BV = jnp.zeros(logits.shape, bool).at[rows_B1, tokens].max(known_BS)
    penalty = request.repetition_penalty
    logits = jnp.where(known_BV, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    return logits - request.frequency_penalty * count_BV - request.presence_penalty * (count_BV > 0)


def ban_ngrams(logits: Logits, tokens: Int[Array, "B S"], end: Int[Array, "B"], size: Int[Array, ""]) -> Logits:
    """Ban each token that would repeat an n-gram of this size among the first `end` tokens of its row."""
    rows_B1, position_1S = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]

    def compare(back: Array, same_BS: Array) -> Array:
        # Is the token `back` before each position the one that is `back` before the end?
        then_B1 = jnp.take_along_axis(tokens, end[:, None] - back, axis=1)
        return same_BS & (jnp.roll(tokens, back, axis=1) == then_B1)

    inside_BS = (position_1S >= size - 1) & (position_1S < end[:, None])
    repeats_BS = lax.fori_loop(1, size, compare, inside_BS)
    return logits.at[rows_B1, tokens].min(jnp.where(repeats_BS, -jnp.inf, jnp.inf))


def ban_stops(
    logits: Logits, stops: Int[Array, "E L"], tokens: Int[Array, "B S"], length: Int[Array, "B"], step: Int[Array, ""]
) -> Logits:
    """Ban each token that would complete a stop sequence."""
    begun_BE, last_E = _stops_begun(stops, tokens, length, step)
    return logits.at[:, last_E].min(jnp.where(begun_BE, -jnp.inf, jnp.inf))


def stops_at(
    candidates: Int[Array, "B K"],
    stops: Int[Array, "E L"],
    tokens: Int[Array, "B S"],
    length: Int[Array, "B"],
    step: Int[Array, ""],
) -> Bool[Array, "B K"]:
    """Which candidates for the next token would complete a stop sequence among the generated tokens."""
    begun_BE, last_E = _stops_begun(stops, tokens, length, step)
    return jnp.any(begun_BE[:, None] & (candidates[:, :, None] == last_E[None, None]), axis=2)


def _stops_begun(stops_EL: Array, tokens_BS: Array, length_B: Array, step: Array) -> tuple[Array, Array]:
    """Whether the generated tokens end in all of a stop sequence but its last token; and those last tokens."""
    size_E = jnp.sum(stops_EL >= 0, axis=1)
    place_1L = jnp.arange(stops_EL.shape[1])[None]
    # Where in the row each token of the sequence has to be, if its last one is the next.
    position_BEL = (length_B + step)[:, None, None] - size_E[None, :, None] + 1 + place_1L[None]
    there_BEL = tokens_BS[jnp.arange(len(tokens_BS))[:, None, None], position_BEL]
    equal_BEL = (there_BEL == stops_EL[None]) & (position_BEL >= length_B[:, None, None])
    begun_BE = jnp.all(equal_BEL | (place_1L >= size_E[:, None] - 1)[None], axis=2) & (size_E > 0)[None]
    return begun_BE, jnp.take_along_axis(stops_EL, jnp.maximum(size_E - 1, 0)[:, None], axis=1)[:, 0]
