"""The request and the output, which all methods of sampling share.

Letters: B rows (prompts), T prompt positions, S positions of a row's history (prompt and new tokens), V vocabulary,
M maximum number of new tokens, K hypotheses per row, E stop sequences, L their greatest length, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt

from minigpt_jax import rng
from minigpt_jax.errors import UserError
from minigpt_jax.samplers.buckets import power_bucket

GREATEST_PENALTY = 1e4
GREATEST_BIAS = 1e6

Prefill = Callable[[Int[Array, "B T"], Int[Array, "B"]], tuple[Float[Array, "B V"], Float[Array, "B T D"], PyTree]]
"""(right-padded prompts, their lengths) -> logits after each row's last token, hidden states, and the cache.

A cache is any pytree whose leaves have the rows as their first axis. It needs room for the prompt and the new tokens.
"""

Step = Callable[[Int[Array, "B"], PyTree, Int[Array, "B"]], tuple[Float[Array, "B V"], Float[Array, "B D"], PyTree]]
"""(one token per row, the cache, the tokens' positions) -> logits after them, hidden states, and the cache with them.

It is called for B rows, or for B times the number of beams or candidates, with those of a row side by side.
"""

Processor = Callable[[Float[Array, "B V"], Int[Array, "B S"], Int[Array, "B"], Int[Array, "B"]], Float[Array, "B V"]]
"""(logits, histories, lengths of the prompts, tokens generated since) -> logits: a logit processor of the user's own.

It is a pure function that JAX can trace. Only the first length + step tokens of a history are valid. It is called after
penalties, bias and bans, and before the temperature. Beam search calls it with a row for each hypothesis.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """Prompts, and the settings that all methods share, for each row, so that rows of several callers share a batch.

    All fields are traced, so a new value does not recompile. `request` makes one: it checks the values, converts them
    to fixed types and fills in defaults. `concatenate` joins several.
    """

    tokens: Int[Array, "B T"]
    """Prompts, padded on the right; each has at least one token."""
    length: Int[Array, "B"]
    """Tokens in each prompt."""
    limit: Int[Array, "B"]
    """Maximum number of new tokens, at most M; 0 for a row of padding."""
    row_id: UInt[Array, "B"]
    """A row's random draws depend on this, on the seed and on the position."""
    copy: UInt[Array, "B"]
    """The index of the row among several texts of one prompt. It is folded into the key of the row's draws."""
    seed: UInt[Array, "B 2"]
    """A seed as `rng.words` gives it."""
    pad_id: Int[Array, "B"]
    """The token that fills a row after its end."""
    stops: Int[Array, "B E L"]
    """Token sequences, each padded with -1. A row ends once its new tokens contain one of them."""
    min_new_tokens: Int[Array, "B"]
    """Before a row has so many new tokens, those that would complete a stop sequence are banned, as in Transformers."""
    repetition_penalty: Float[Array, "B"]
    """Divides the positive and multiplies the negative logits of all tokens in the row, prompt included; 1: none."""
    presence_penalty: Float[Array, "B"]
    """Subtracted from the logits of tokens that have been generated in the row; 0: none."""
    frequency_penalty: Float[Array, "B"]
    """Subtracted from a token's logit for each time that it has been generated in the row; 0: none."""
    no_repeat_ngram: Int[Array, "B"]
    """Bans tokens that would repeat an n-gram of this size in the row, prompt included; 0: off."""
    logit_bias: Float[Array, "B V"]
    """Added to the logits; -inf bans a token. A row whose tokens are all banned ends before its limit."""


class TopTokens(NamedTuple):
    """The most probable tokens at each new token's position, by the model's own distribution, best first."""

    tokens: Int[Array, "*rows N"]
    logprobs: Float[Array, "*rows N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """New tokens of K hypotheses per row, best first; K is 1 except for beam search.

    If beam search has found fewer than K hypotheses, the rest have a score of -inf and no tokens.
    """

    tokens: Int[Array, "B K M"]
    """New tokens, including the stop sequence, then padding."""
    logprobs: Float[Array, "B K M"]
    """The model's own log-probability of each new token, before any processor; then 0."""
    length: Int[Array, "B K"]
    """Number of new tokens."""
    stopped: Bool[Array, "B K"]
    """Whether a stop sequence ended the text. Otherwise its limit or bans did, or it has not ended yet."""
    score: Float[Array, "B K"]
    """The score by which beam search ranks; for other methods the sum of the log-probabilities."""
    top: TopTokens | None = None
    """[B K M N] each, if they are recorded; padding and 0 after the new tokens."""


def request(
    prompts: Sequence[Sequence[int]],
    *,
    vocabulary_size: int,
    max_new_tokens: int | Sequence[int],
    width: int | None = None,
    row_ids: Sequence[int] | None = None,
    copies: Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    pad_id: int = 0,
    stops: Sequence[Sequence[int]] = (),
    min_new_tokens: int | Sequence[int] = 0,
    repetition_penalty: float | Sequence[float] = 1.0,
    presence_penalty: float | Sequence[float] = 0.0,
    frequency_penalty: float | Sequence[float] = 0.0,
    no_repeat_ngram: int | Sequence[int] = 0,
    logit_bias: Any = None,
) -> Request:
    """A request with checked values of fixed types, as NumPy arrays.

    A number is for all rows. A sequence, where one is allowed, has a number for each row.

    Args:
        prompts: token ids of each prompt, at least one.
        vocabulary_size: V.
        max_new_tokens: the maximum number of new tokens.
        width: T, the width to which prompts are padded; that of the longest prompt by default.
        row_ids: 0, 1, 2 ... by default; 32 bits each.
        copies: 0 for all rows by default.
        stops: the stop sequences of all rows, padded to bucketed sizes. For rows with different stop sequences, make
            several requests and join them with `concatenate`.
        logit_bias: [V] or [B V] numbers, or None.

    The other arguments are the fields of `Request`.

    Raises:
        UserError: a value is not allowed. The message names its flag of the command line.
    """
    for value in np.ravel(min_new_tokens):
        if value < 0:
            raise UserError(f"--min-new-tokens {value} is negative: give 0 or more")
    # Beyond these bounds a penalised logit overflows float32.
    for penalty in np.ravel(repetition_penalty):
        if not 1 / GREATEST_PENALTY <= penalty <= GREATEST_PENALTY:
            raise UserError(
                f"--repetition-penalty {penalty} must lie between {1 / GREATEST_PENALTY:g} and "
                f"{GREATEST_PENALTY:,.0f}: 1 means none, more repeats less"
            )
    for name, penalties in (("presence", presence_penalty), ("frequency", frequency_penalty)):
        for penalty in np.ravel(penalties):
            if not -GREATEST_PENALTY <= penalty <= GREATEST_PENALTY:
                raise UserError(
                    f"--{name}-penalty {penalty} must lie between -{GREATEST_PENALTY:,.0f} and "
                    f"{GREATEST_PENALTY:,.0f}: 0 means none, more repeats less"
                )
    for size in np.ravel(no_repeat_ngram):
        if size < 0:
            raise UserError(f"--no-repeat-ngram {size} is negative: give a size, or 0 for none")
    for stop in stops:
        if not len(stop) or not all(0 <= token < vocabulary_size for token in stop):
            raise UserError(f"--stop {list(stop)} is no token sequence: give one id or more below {vocabulary_size}")
    if row_ids is not None and not all(0 <= row < 2**32 for row in row_ids):
        raise UserError("row_ids: give whole numbers from 0 to 4,294,967,295, on which a row's random draws depend")
    if not len(prompts):
        raise ValueError("there is no prompt: give one or more")
    for limit in np.ravel(max_new_tokens):
        if limit < 0:
            raise UserError(f"--max-new-tokens {limit} is negative: give 0 or more")
    rows = len(prompts)
    length = np.array([len(prompt) for prompt in prompts], np.int32)
    if not length.all():
        raise ValueError("a prompt has no token: give it the one that texts begin with")
    for token in (extreme(prompt) for prompt in prompts for extreme in (min, max)):
        if not 0 <= token < vocabulary_size:
            raise UserError(f"prompts: there is no token {token}; ids go from 0 to {vocabulary_size - 1:,}")

    def by_row(value: Any, dtype: Any) -> np.ndarray:
        return np.full(rows, np.asarray(value, dtype))

    stops_EL = _padded(stops, power_bucket(len(stops), 4), power_bucket(max(map(len, stops), default=0), 4), -1)
    fields: dict[str, Any] = dict(
        tokens=_padded(prompts, rows, max(length) if width is None else width, pad_id),
        length=length,
        limit=by_row(max_new_tokens, np.int32),
        row_id=by_row(range(rows) if row_ids is None else row_ids, np.uint32),
        copy=by_row(0 if copies is None else copies, np.uint32),
        seed=np.stack([rng.words(int(one)) for one in ([seed] * rows if np.ndim(seed) == 0 else seed)]),  # pyright: ignore[reportGeneralTypeIssues]
        pad_id=by_row(pad_id, np.int32),
        stops=np.repeat(stops_EL[None], rows, axis=0),
        min_new_tokens=by_row(min_new_tokens, np.int32),
        repetition_penalty=by_row(repetition_penalty, np.float32),
        presence_penalty=by_row(presence_penalty, np.float32),
        frequency_penalty=by_row(frequency_penalty, np.float32),
        no_repeat_ngram=by_row(no_repeat_ngram, np.int32),
        logit_bias=np.broadcast_to(_checked_bias(logit_bias, vocabulary_size), (rows, vocabulary_size)).copy(),
    )
    return Request(**fields)


def concatenate(requests: Sequence[Request]) -> Request:
    """Joins the rows of several requests, whose vocabularies must have the same size, on the host."""

    def join(fill: int, *leaves: Any) -> np.ndarray:
        shape = np.max([leaf.shape[1:] for leaf in leaves], axis=0)
        pads = [[(0, 0), *((0, most - size) for most, size in zip(shape, x.shape[1:], strict=True))] for x in leaves]
        return np.concatenate([np.pad(x, pad, constant_values=fill) for x, pad in zip(leaves, pads, strict=True)])

    fields = {name: [getattr(one, name) for one in requests] for name in vars(requests[0])}
    joined: dict[str, Any] = {name: join(-1 if name == "stops" else 0, *leaves) for name, leaves in fields.items()}
    return Request(**joined)


def _checked_bias(logit_bias: Any, vocabulary_size: int) -> np.ndarray:
    bias = np.zeros(vocabulary_size) if logit_bias is None else np.asarray(logit_bias)
    shaped = 1 <= bias.ndim <= 2 and bias.shape[-1] == vocabulary_size
    finite = bias > -np.inf
    if shaped and not finite.any(axis=-1).all() and not np.isnan(bias).any():
        raise UserError("--logit-bias bans every token; leave at least one allowed")
    if not shaped or np.isnan(bias).any() or np.abs(bias[finite]).max() > GREATEST_BIAS:
        raise UserError(
            f"--logit-bias: give {vocabulary_size} numbers, one per token, between -{GREATEST_BIAS:,.0f} and "
            f"{GREATEST_BIAS:,.0f}, or -inf to ban it"
        )
    return bias.astype(np.float32)


def _padded(sequences: Sequence[Sequence[int]], rows: int, width: int, fill: int) -> np.ndarray:
    table = np.full((rows, width), fill, np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[: len(sequence)] = sequence
    return table
