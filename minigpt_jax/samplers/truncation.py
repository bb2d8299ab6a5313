"""Truncation: which tokens may be drawn.

Filters apply in a fixed order, which is Hugging Face's: `top_k`, `top_p`, `min_p`, `typical`. Each one sees the
probabilities of the tokens that the filters before it keep, normalised to a sum of 1.

Evaluating a filter by rank for every token would need a sort. The last filter is evaluated only for the tokens that are
drawn, see `selection.draw`. Those before it are evaluated by bisection, see `TokenFilter.mask`.

Letters: B rows, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from minigpt_jax.ops import reduce
from minigpt_jax.samplers.selection import TokenFilter, blocks

# A probability mass is a sum of V rounded numbers, so a mass this close to p counts as p.
_ROUNDING = 1e-6

Logits = Float[Array, "B V"]


def truncate(
    logits: Logits, top_k: Any = None, top_p: Any = None, min_p: Any = None, typical_p: Any = None
) -> tuple[Logits, TokenFilter | None]:
    """Applies the filters that are not None. Returns what `selection.Truncation` says.

    Args:
        logits: those already divided by the temperature.
        top_k, top_p, min_p, typical_p: the settings of the functions below; traced values.
    """
    last = None
    if top_k is not None:
        last = top_k_filter(logits, top_k)
    if top_p is not None:
        logits = _apply(last, logits)
        last = top_p_filter(logits, top_p)
    if min_p is not None:
        # It depends only on the best token, which every filter keeps, so the filter before it can stay the last one.
        logits = apply_min_p(logits, min_p)
    if typical_p is not None:
        logits = _apply(last, logits)
        last = typical_filter(logits, typical_p)
    return logits, last


def truncate_all(logits: Logits, *filters: Any) -> Logits:
    """`truncate` with every filter evaluated for all tokens: -inf for the tokens that it removes."""
    logits, last = truncate(logits, *filters)
    return _apply(last, logits)


def top_k_filter(logits: Logits, k: Any) -> TokenFilter:
    """Keeps the k most probable tokens."""
    # The k-th greatest of any tokens is a lower bound. That of the best tokens of the blocks, about 64, is close.
    best_BW = blocks(logits, -jnp.inf).max(axis=1)
    ahead_BW = jnp.sum(best_BW[:, None, :] > best_BW[:, :, None], axis=2)
    bar_B = jnp.min(best_BW, axis=1, where=ahead_BW < k, initial=jnp.inf)
    bar_B = jnp.where(k <= best_BW.shape[1], bar_B, -jnp.inf)
    return TokenFilter(logits, jnp.ones_like(logits), jnp.full(logits.shape[:1], k, jnp.float32), bar_B)


def top_p_filter(logits: Logits, p: Any) -> TokenFilter:
    """Keeps the most probable tokens until their probabilities sum to p (Holtzman et al. 2020)."""
    weight_BV = jnp.exp(logits - reduce.max(logits)[:, None])
    return TokenFilter(logits, weight_BV, _mass(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def typical_filter(logits: Logits, p: Any) -> TokenFilter:
    """Keeps the tokens whose surprise is closest to the entropy, until their probabilities sum to p.

    The order is that of |-log p(v) - H|, where H is the entropy: locally typical sampling (Meister et al. 2022).
    """
    log_p_BV = jax.nn.log_softmax(logits)
    weight_BV = jnp.exp(log_p_BV)
    entropy_B1 = -jnp.sum(weight_BV * log_p_BV, axis=1, keepdims=True, where=weight_BV > 0)
    score_BV = -jnp.abs(log_p_BV + entropy_B1)
    return TokenFilter(score_BV, weight_BV, _mass(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def apply_min_p(logits: Logits, p: Any) -> Logits:
    """Keeps the tokens that are at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    least_B1 = reduce.max(logits)[:, None] + jnp.log(p) - _ROUNDING
    return jnp.where(logits >= least_B1, logits, -jnp.inf)


def _apply(token_filter: TokenFilter | None, logits: Logits) -> Logits:
    return logits if token_filter is None else jnp.where(token_filter.mask(), logits, -jnp.inf)


def _mass(p: Any, weight_BV: Array) -> Array:
    """The total weight of a set of tokens with probability p. It is infinite if p is 1, which keeps all tokens."""
    mass_B = jnp.maximum(p * reduce.sum(weight_BV) * (1 - _ROUNDING), jnp.finfo(jnp.float32).tiny)
    return jnp.where(p < 1, mass_B, jnp.inf)
