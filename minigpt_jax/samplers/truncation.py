"""Truncation: which tokens a random draw may take.

Filters apply in a fixed order, the one of Hugging Face's: `top_k`, `top_p`, `min_p`, `typical`. Each sees the
probabilities as the filters before it have left them, with the rest at 0 and summing to 1 again.

A filter by rank would take a sort to be worked out for every token. The last one of them is not: it is asked about the
tokens that are drawn alone, see `selection.draw`. Those before it are worked out by bisection, see `TokenFilter.mask`.

Letters: B rows, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from minigpt_jax.samplers.selection import TokenFilter, blocks

# A probability mass is a sum of V rounded numbers: a mass that is this near to p has reached it.
_ROUNDING = 1e-6

Logits = Float[Array, "B V"]


def truncate(
    logits: Logits, top_k: Any = None, top_p: Any = None, min_p: Any = None, typical_p: Any = None
) -> tuple[Logits, TokenFilter | None]:
    """Applies those of the filters that are not None; see `selection.Truncation` for what comes back.

    Args:
        logits: divided by the temperature already.
        top_k, top_p, min_p, typical_p: the settings of the functions below; traced values.
    """
    last = None
    if top_k is not None:
        last = top_k_filter(logits, top_k)
    if top_p is not None:
        logits = _apply(last, logits)
        last = top_p_filter(logits, top_p)
    if min_p is not None:
        # It looks at nothing but the best token, which every filter keeps, so the one before it can stay the last.
        logits = apply_min_p(logits, min_p)
    if typical_p is not None:
        logits = _apply(last, logits)
        last = typical_filter(logits, typical_p)
    return logits, last


def top_k_filter(logits: Logits, k: Any) -> TokenFilter:
    """Keeps the k most probable tokens."""
    # The k-th greatest of any k tokens or more is a bar; that of the best of 64 or so blocks is near the true one.
    best_BW = blocks(logits, -jnp.inf).max(axis=1)
    ahead_BW = jnp.sum(best_BW[:, None, :] > best_BW[:, :, None], axis=2)
    bar_B = jnp.min(best_BW, axis=1, where=ahead_BW < k, initial=jnp.inf)
    bar_B = jnp.where(k <= best_BW.shape[1], bar_B, -jnp.inf)
    return TokenFilter(logits, jnp.ones_like(logits), jnp.full(logits.shape[:1], k, jnp.float32), bar_B)


def top_p_filter(logits: Logits, p: Any) -> TokenFilter:
    """Keeps the fewest, most probable tokens whose probability mass reaches p (Holtzman et al. 2020)."""
    weight_BV = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return TokenFilter(logits, weight_BV, _mass(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def typical_filter(logits: Logits, p: Any) -> TokenFilter:
    """Keeps the fewest tokens whose mass reaches p, those first whose surprise is nearest the expected one.

    The order is that of |-log p(v) - H|, where H is the entropy: locally typical sampling (Meister et al. 2022).
    """
    log_p_BV = jax.nn.log_softmax(logits)
    weight_BV = jnp.exp(log_p_BV)
    entropy_B1 = -jnp.sum(weight_BV * log_p_BV, axis=1, keepdims=True, where=weight_BV > 0)
    score_BV = -jnp.abs(log_p_BV + entropy_B1)
    return TokenFilter(score_BV, weight_BV, _mass(p, weight_BV), jnp.full(logits.shape[:1], -jnp.inf))


def apply_min_p(logits: Logits, p: Any) -> Logits:
    """Keeps the tokens that are at least p times as probable as the most probable one (Nguyen et al. 2024)."""
    least_B1 = logits.max(axis=1, keepdims=True) + jnp.log(p) - _ROUNDING
    return jnp.where(logits >= least_B1, logits, -jnp.inf)


def _apply(token_filter: TokenFilter | None, logits: Logits) -> Logits:
    return logits if token_filter is None else jnp.where(token_filter.mask(), logits, -jnp.inf)


def _mass(p: Any, weight_BV: Array) -> Array:
    """The weight at which a set has the share p of all; p = 1 takes all tokens."""
    mass_B = jnp.maximum(p * weight_BV.sum(axis=1) * (1 - _ROUNDING), jnp.finfo(jnp.float32).tiny)
    return jnp.where(p < 1, mass_B, jnp.inf)
