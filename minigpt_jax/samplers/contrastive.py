"""Contrastive search (Su et al. 2022): probable tokens that differ from the text so far.

Of the k most probable tokens v, it takes the one with the greatest (1 - alpha) p(v) - alpha max_j cos(h_v, h_j). Here
h_v is the model's last hidden state at v if v is the next token, and j runs over the prompt and all tokens since. The k
candidates of a row are one batched step of the model. The step of the chosen token is not run again.

p(v) is the model's own probability in the full vocabulary. Bans and penalties change it as in beam search.

Letters: B rows, K candidates per row, R = B * K rows of the model's step, those of a row side by side, V vocabulary,
M maximum number of new tokens, S = T + M positions of a history, D width.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from minigpt_jax.ops import kv_cache, reduce
from minigpt_jax.samplers import loop, processors, selection
from minigpt_jax.samplers.interface import Prefill, Processor, Request, Step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State(loop.State):
    """The state of `loop`, but the cache has R rows, of which all rows of a group are equal."""

    hidden: Float[Array, "B S D"]
    """The hidden state at each token, normalised to length 1."""


class Candidates(NamedTuple):
    """The tokens that a row chooses from, best first."""

    tokens: Int[Array, "B K"]
    logits: Float[Array, "B K"]
    """After penalties, bias and processors."""
    probability: Float[Array, "B K"]


def start(prefill: Prefill, sampler: Any, request: Request, max_new_tokens: int, top_logprobs: int) -> State:
    """Runs the model over the prompts. No token is picked yet."""
    logits_BV, hidden_BTD, cache = prefill(request.tokens, request.length)
    blank = loop.blank(request, logits_BV, kv_cache.repeat(cache, sampler.width), max_new_tokens, top_logprobs)
    return State(**vars(blank), hidden=jnp.pad(unit(hidden_BTD), ((0, 0), (0, max_new_tokens), (0, 0))))


def advance(
    step: Step, sampler: Any, request: Request, state: State, until: int | Array, extra: Sequence[Processor]
) -> State:
    """Picks tokens until every running row has at least `until` new ones."""
    pick = lambda state: _pick(step, sampler, request, state, extra)  # noqa: E731
    return lax.while_loop(lambda state: loop.unfinished(state, until), pick, state)


result = loop.result


def _pick(step: Step, sampler: Any, request: Request, state: State, extra: Sequence[Processor]) -> State:
    rows, width = state.tokens.shape[0], sampler.width
    controlled_BV = processors.control(request, state.logits, state.tokens, state.step, extra)
    candidates = propose(controlled_BV, state.logits, width)

    # The step of every candidate. Rows that have ended stay within their limit.
    position_B = request.length + jnp.clip(state.step, 0, jnp.maximum(request.limit - 1, 0))
    position_R = jnp.repeat(position_B, width)
    logits_RV, hidden_RD, cache = step(candidates.tokens.reshape(-1), state.cache, position_R)
    hidden_BKD = unit(hidden_RD).reshape(rows, width, -1)
    score_BK = score(sampler, candidates, hidden_BKD, state.hidden, request.length + state.step)
    chosen_B = jnp.argmax(score_BK, axis=1)

    row_B = jnp.arange(rows)
    chosen_R = jnp.repeat(row_B * width + chosen_B, width)
    return dataclasses.replace(
        loop.append(request, state, candidates.tokens[row_B, chosen_B], candidates.logits[row_B, chosen_B] > -jnp.inf),
        # All rows of a group have the same context, so only the new token is copied to the others.
        cache=kv_cache.adopt(cache, chosen_R, position_R),
        logits=logits_RV[chosen_R[::width]].astype(jnp.float32),
        hidden=state.hidden.at[row_B, position_B].set(hidden_BKD[row_B, chosen_B]),
    )


def propose(controlled: Float[Array, "B V"], logits: Float[Array, "B V"], width: int) -> Candidates:
    """The `width` most probable tokens. If the vocabulary has fewer, banned ones follow them.

    Args:
        controlled: the logits after penalties, bias and processors.
        logits: the model's own.
    """
    norm_B1 = reduce.logsumexp(jnp.maximum(controlled, logits))[:, None]
    count = min(width, controlled.shape[1])  # k is rounded up
    values_BK, tokens_BK = selection.top(controlled, count)
    missing = ((0, 0), (0, width - count))
    values_BK = jnp.pad(values_BK, missing, constant_values=-jnp.inf)
    tokens_BK = jnp.pad(tokens_BK, missing)
    return Candidates(tokens_BK, values_BK, jnp.exp(values_BK - norm_B1))


def score(
    sampler: Any,
    candidates: Candidates,
    hidden: Float[Array, "B K D"],
    context: Float[Array, "B S D"],
    known: Int[Array, "B"],
) -> Float[Array, "B K"]:
    """The score of each candidate; -inf beyond the first k, and for banned tokens.

    Args:
        hidden: the hidden state at each candidate, of length 1.
        context: those of the text so far, of which the first `known` of each row are valid.
    """
    alike_BKS = jnp.einsum("bkd,bsd->bks", hidden, context, precision=lax.Precision.HIGHEST)
    known_BS = jnp.arange(context.shape[1])[None] < known[:, None]
    alike_BK = jnp.max(alike_BKS, axis=2, where=known_BS[:, None], initial=-1.0)
    k_B1, alpha_B1 = (jnp.reshape(setting, (-1, 1)) for setting in (sampler.k, sampler.alpha))  # [1, 1] if all share it
    score_BK = (1 - alpha_B1) * candidates.probability - alpha_B1 * alike_BK
    allowed_BK = (jnp.arange(hidden.shape[1])[None] < k_B1) & (candidates.logits > -jnp.inf)
    return jnp.where(allowed_BK, score_BK, -jnp.inf)


def unit(hidden: Array) -> Array:
    """Vectors of length 1, in float32, so that products are cosines."""
    hidden = hidden.astype(jnp.float32)
    return hidden * lax.rsqrt(jnp.maximum(jnp.sum(hidden**2, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny))
