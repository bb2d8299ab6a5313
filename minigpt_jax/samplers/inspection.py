"""What a method chose from at each token of a text: the most probable tokens, and which of them it kept.

The text is given, and its tokens are fed to the model one by one, as when it was generated. So every position sees the
cache, the penalties and the window that it saw then. Contrastive search compares hidden states of its candidates, which
are steps of the model beside that of the given token.

Letters: B rows, M new tokens, N most probable tokens, V vocabulary, K candidates of contrastive search, S positions of
a row's history.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.ops import kv_cache
from minigpt_jax.samplers import contrastive, loop, selection
from minigpt_jax.samplers.base import Sampler
from minigpt_jax.samplers.interface import Prefill, Processor, Request, Step
from minigpt_jax.samplers.processors import control


class Inspection(NamedTuple):
    """The N tokens that the model finds most probable at each position, best first, and after them the given token."""

    tokens: Int[Array, "B M N+1"]
    logprobs: Float[Array, "B M N+1"]
    """The model's own."""
    kept: Bool[Array, "B M N+1"] | None
    """Whether the method could have taken the token there. None, as below, if the method does not say."""
    value: Float[Array, "B M N+1"] | None
    """The log-probability by which the method draws the token, or the score that contrastive search gives it; -inf if
    it was not kept."""
    rank: Int[Array, "B M"]
    """The place of the given token among all, by the model's probability; 1 for the most probable."""
    kept_count: Int[Array, "B M"] | None
    """How many tokens of the whole vocabulary the method kept."""
    kept_mass: Float[Array, "B M"] | None
    """The sum of the model's own probabilities of these tokens."""


def inspect(
    prefill: Prefill,
    step: Step,
    sampler: Sampler,
    request: Request,
    tokens: Int[Array, "B M"],
    count: int,
    *,
    processors: Sequence[Processor] = (),
) -> Inspection:
    """Inspects every position of the new tokens of each row, which the method has generated.

    Args:
        prefill, step: the model.
        sampler: the method. What beam search keeps depends on all its hypotheses, so it does not say here.
        request: the prompts and settings that the tokens were generated with.
        tokens: the new tokens, padded with anything. What is returned for padding means nothing.
        count: N.
        processors: those that the tokens were generated with.
    """
    request = jax.tree.map(jnp.asarray, request)
    rows, compares = jnp.arange(len(tokens)), sampler.driver is contrastive
    logits_BV, hidden_BTD, cache = prefill(request.tokens, request.length)
    blank = loop.blank(request, logits_BV, cache, tokens.shape[1], 0)
    new_BM = request.length[:, None] + jnp.arange(tokens.shape[1])[None]
    history_BS = blank.tokens.at[rows[:, None], new_BM].set(tokens)
    width = sampler.width + 1 if compares else 1  # the given token comes after the candidates
    context_BSD = jnp.pad(contrastive.unit(hidden_BTD), ((0, 0), (0, tokens.shape[1]), (0, 0))) if compares else None

    def body(carry: Any, place: tuple[Array, Array]) -> Any:
        logits_BV, cache, context_BSD = carry
        at, given_B = place
        step_B = jnp.broadcast_to(at, given_B.shape)
        controlled_BV = control(request, logits_BV, history_BS, step_B, processors)
        position_B = request.length + jnp.clip(step_B, 0, jnp.maximum(request.limit - 1, 0))
        if compares:
            candidates = contrastive.propose(controlled_BV, logits_BV, width - 1)
            fed_BK = jnp.concatenate([candidates.tokens, given_B[:, None]], axis=1)
        else:
            candidates, fed_BK = None, given_B[:, None]
        position_R = jnp.repeat(position_B, width)
        next_RV, hidden_RD, cache = step(fed_BK.reshape(-1), cache, position_R)
        last_B = rows * width + width - 1
        if candidates is None:
            value_BV = sampler.distribution(controlled_BV)
        else:
            hidden_BKD = contrastive.unit(hidden_RD).reshape(len(rows), width, -1)
            score_BK = contrastive.score(sampler, candidates, hidden_BKD[:, :-1], context_BSD, request.length + step_B)
            value_BV = jnp.full_like(controlled_BV, -jnp.inf).at[rows[:, None], candidates.tokens].max(score_BK)
            cache = kv_cache.adopt(cache, jnp.repeat(last_B, width), position_R)
            context_BSD = context_BSD.at[rows, position_B].set(hidden_BKD[:, -1])
        carry = next_RV[last_B].astype(jnp.float32), cache, context_BSD
        return carry, _record(logits_BV, value_BV, given_B, count)

    carry = blank.logits, kv_cache.repeat(cache, width), context_BSD
    _, found = lax.scan(body, carry, (jnp.arange(tokens.shape[1]), tokens.T))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), found)


def _record(logits_BV: Array, value_BV: Float[Array, "B V"] | None, given_B: Int[Array, "B"], count: int) -> Inspection:
    """The inspection of one position, without the axis M."""
    logprobs_BV = jax.nn.log_softmax(logits_BV)
    tokens_BN = jnp.concatenate([selection.top(logits_BV, count)[1], given_B[:, None]], axis=1)
    take = lambda leaf_BV: jnp.take_along_axis(leaf_BV, tokens_BN, axis=1)  # noqa: E731
    logits_B1 = jnp.take_along_axis(logits_BV, given_B[:, None], axis=1)
    earlier_BV = jnp.arange(logits_BV.shape[1])[None] < given_B[:, None]
    ahead_BV = (logits_BV > logits_B1) | ((logits_BV == logits_B1) & earlier_BV)
    kept_BV = None if value_BV is None else value_BV > -jnp.inf
    return Inspection(
        tokens=tokens_BN,
        logprobs=take(logprobs_BV),
        kept=None if kept_BV is None else take(kept_BV),
        value=None if value_BV is None else take(value_BV),
        rank=1 + jnp.sum(ahead_BV, axis=1),
        kept_count=None if kept_BV is None else jnp.sum(kept_BV, axis=1),
        kept_mass=None if kept_BV is None else jnp.sum(jnp.exp(logprobs_BV), axis=1, where=kept_BV),
    )
