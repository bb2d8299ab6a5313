"""What a caller asks for and what comes back: the data that every method of sampling shares.

Letters: B rows (prompts), T prompt positions, V vocabulary, M most new tokens, K hypotheses a row, E stop sequences,
L their greatest length, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from minigpt_jax import rng
from minigpt_jax.errors import UserError

GREATEST_PENALTY = 1e4
GREATEST_BIAS = 1e6

Prefill = Callable[[Int[Array, "B T"], Int[Array, "B"]], tuple[Float[Array, "B V"], Float[Array, "B T D"], PyTree]]
"""(right-padded prompts, their lengths) -> logits after each row's last token, hidden states, and the cache.

A cache is any pytree with rows first in every leaf; it needs room for prompt and new tokens.
"""

Step = Callable[[Int[Array, "B"], PyTree, Int[Array, "B"]], tuple[Float[Array, "B V"], Float[Array, "B D"], PyTree]]
"""(one token a row, the cache, the tokens' positions) -> logits after them, hidden states, and the cache with them.

It is called for B rows, or for B times as many as there are beams or candidates, those of a row side by side.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """Prompts, and what is asked of every method alike. All of it is traced: changing a value compiles nothing.

    Make one with `request`, which fills in the neutral values, checks, and settles the types.
    """

    tokens: Int[Array, "B T"]
    """Prompts, padded on the right; each has at least one token."""
    length: Int[Array, "B"]
    """Tokens in each prompt."""
    limit: Int[Array, "B"]
    """Most new tokens of each row, not more than the M that the program has room for; 0: none, a row of padding."""
    row_id: Int[Array, "B"]
    """With the seed and the position, what a row's random draws depend on."""
    copy: Int[Array, "B"]
    """Which of several texts of one prompt the row is, from 0 on: folded into the key of its draws."""
    seed: Int[Array, "2"]
    """A seed as `rng.words` gives it."""
    pad_id: Int[Array, ""]
    """What tokens after a row's end are."""
    stops: Int[Array, "E L"]
    """Token sequences, any of which among a row's new tokens ends it; -1 after each one's end."""
    min_new_tokens: Int[Array, ""]
    """No stop sequence ends among a row's first so many new tokens."""
    repetition_penalty: Float[Array, ""]
    """Divides the positive and multiplies the negative logits of all tokens in the row, prompt included; 1: none."""
    presence_penalty: Float[Array, ""]
    """Subtracted from the logits of tokens that have been generated in the row; 0: none."""
    frequency_penalty: Float[Array, ""]
    """Subtracted from a token's logit for each time that it has been generated in the row; 0: none."""
    no_repeat_ngram: Int[Array, ""]
    """No n-gram of this size comes twice in a row, prompt included; 0: they may."""
    logit_bias: Float[Array, "V"]
    """Added to the logits; -inf bans a token. A row that bans leave no token ends before its limit."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """New tokens of K hypotheses a row, best first; K is 1 but for beam search.

    Where beam search has found fewer than K, the last have a score of -inf and no tokens.
    """

    tokens: Int[Array, "B K M"]
    """New tokens, the stop sequence included, then padding."""
    logprobs: Float[Array, "B K M"]
    """The model's own log-probability of each, before any processor; then 0."""
    length: Int[Array, "B K"]
    """New tokens."""
    stopped: Bool[Array, "B K"]
    """Whether a stop sequence ended the text; else its limit did, or it has not ended yet."""
    score: Float[Array, "B K"]
    """Beam search: what it ranks by. Others: the sum of the log-probabilities."""


def request(
    prompts: Sequence[Sequence[int]],
    *,
    vocabulary_size: int,
    max_new_tokens: int | Sequence[int],
    width: int | None = None,
    row_ids: Sequence[int] | None = None,
    copies: Sequence[int] | None = None,
    seed: int = 0,
    pad_id: int = 0,
    stops: Sequence[Sequence[int]] = (),
    min_new_tokens: int = 0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram: int = 0,
    logit_bias: Any = None,
) -> Request:
    """A request with checked values of settled types, as NumPy arrays.

    Args:
      prompts: token ids of each prompt, one at least.
      vocabulary_size: V.
      max_new_tokens: the limit on new tokens, for all rows or for each.
      width: T, to which prompts are padded; the longest prompt by default.
      row_ids: 0, 1, 2 ... by default; 32 bits each.
      copies: 0 for all rows by default.
      logit_bias: [V] numbers, or None.

    The rest is as in `Request`. Stops are padded to sizes that nearby numbers of them share.

    Raises:
      UserError: a value that cannot be; the text names the command line's flag for it.
    """
    if min_new_tokens < 0:
        raise UserError(f"--min-new-tokens {min_new_tokens} is negative: give 0 or more")
    # Beyond these bounds a penalised logit overflows float32.
    if not 1 / GREATEST_PENALTY <= repetition_penalty <= GREATEST_PENALTY:
        raise UserError(
            f"--repetition-penalty {repetition_penalty} must lie between {1 / GREATEST_PENALTY:g} and "
            f"{GREATEST_PENALTY:,.0f}: 1 means none, more repeats less"
        )
    for name, penalty in (("presence", presence_penalty), ("frequency", frequency_penalty)):
        if not -GREATEST_PENALTY <= penalty <= GREATEST_PENALTY:
            raise UserError(
                f"--{name}-penalty {penalty} must lie between -{GREATEST_PENALTY:,.0f} and {GREATEST_PENALTY:,.0f}: "
                "0 means none, more repeats less"
            )
    if no_repeat_ngram < 0:
        raise UserError(f"--no-repeat-ngram {no_repeat_ngram} is negative: give a size, or 0 for none")
    for stop in stops:
        if not len(stop) or not all(0 <= token < vocabulary_size for token in stop):
            raise UserError(f"--stop {list(stop)} is no token sequence: give one id or more below {vocabulary_size}")
    bias = np.zeros(vocabulary_size) if logit_bias is None else np.asarray(logit_bias)
    finite = bias[bias > -np.inf] if bias.shape == (vocabulary_size,) else bias[:0]
    if not finite.size or np.isnan(bias).any() or np.abs(finite).max() > GREATEST_BIAS:
        raise UserError(
            f"--logit-bias: give {vocabulary_size} numbers, one per token, between -{GREATEST_BIAS:,.0f} and "
            f"{GREATEST_BIAS:,.0f}, or -inf to ban it, and leave at least one token allowed"
        )
    if row_ids is not None and not all(0 <= row < 2**32 for row in row_ids):
        raise UserError("row_ids: give whole numbers from 0 to 4,294,967,295, on which a row's random draws depend")
    length = np.array([len(prompt) for prompt in prompts], np.int32)
    if not length.all():
        raise ValueError("a prompt has no token: give it the one that texts begin with")
    tokens = _padded(prompts, len(prompts), max(length) if width is None else width, pad_id)
    fields: dict[str, Any] = dict(
        tokens=tokens,
        length=length,
        limit=np.broadcast_to(np.asarray(max_new_tokens, np.int32), length.shape).copy(),
        row_id=np.arange(len(prompts), dtype=np.uint32) if row_ids is None else np.asarray(row_ids).astype(np.uint32),
        copy=np.zeros(len(prompts), np.uint32) if copies is None else np.asarray(copies).astype(np.uint32),
        seed=rng.words(seed),
        pad_id=np.int32(pad_id),
        stops=_padded(stops, _size(len(stops)), _size(max(map(len, stops), default=0)), -1),
        min_new_tokens=np.int32(min_new_tokens),
        repetition_penalty=np.float32(repetition_penalty),
        presence_penalty=np.float32(presence_penalty),
        frequency_penalty=np.float32(frequency_penalty),
        no_repeat_ngram=np.int32(no_repeat_ngram),
        logit_bias=bias.astype(np.float32),
    )
    return Request(**fields)


def _padded(sequences: Sequence[Sequence[int]], rows: int, width: int, fill: int) -> np.ndarray:
    table = np.full((rows, width), fill, np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[: len(sequence)] = sequence
    return table


def _size(n: int) -> int:
    """n rounded up to a power of two, at least 4."""
    return 1 << max(2, (n - 1).bit_length())
