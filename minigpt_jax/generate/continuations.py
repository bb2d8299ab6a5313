"""Log-probabilities of continuations, of any number and lengths."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minigpt_jax.errors import UserError
from minigpt_jax.generate.programs import continuation_scorer
from minigpt_jax.parallel import devices
from minigpt_jax.samplers.buckets import power_bucket, row_bucket

if TYPE_CHECKING:
    from minigpt_jax.generate.language_model import LanguageModel

_ROWS = (256, 128, 64, 32, 16, 4, 1)
_LOGITS = 2**26
"""The most logits of a batch on one device; in float32 they take 268 MB."""


class Scored(NamedTuple):
    """What the model says of a continuation.

    Attributes:
        logprob: its log-probability after the context, in nats.
        greedy: whether each of its tokens is the most probable one in its place.
    """

    logprob: float
    greedy: bool


def scores(
    lm: "LanguageModel", pairs: Sequence[tuple[Sequence[int], Sequence[int]]], most_rows: int | None = None
) -> Iterator[tuple[int, Scored]]:
    """Scores continuations in batches of similar lengths, the longest first.

    Args:
        lm: the model.
        pairs: the token ids of each context, at least one, and of its continuation. A context that does not fit in the
            window is cut on the left.
        most_rows: maximum number of rows of a batch; by default as many as keep the logits of a batch small.

    Yields:
        The index of each pair and its score, as the batches are computed.

    Raises:
        UserError: a continuation alone is longer than the window.
    """
    window = lm.model.sequence_length
    if longest := max((len(continuation) for _, continuation in pairs if len(continuation) > window), default=0):
        raise UserError(f"a text to be scored has {longest:,} tokens, and the window holds {window:,}; shorten it")
    yield from ((i, Scored(0.0, True)) for i, (_, continuation) in enumerate(pairs) if not continuation)
    rows = {i: [*context, *more][-window - 1 :] for i, (context, more) in enumerate(pairs) if more}
    order = sorted(rows, key=lambda i: -len(rows[i]))
    program = continuation_scorer(lm.model)  # pyright: ignore[reportArgumentType]

    def batches() -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
        first = 0
        while first < len(order):
            width = power_bucket(len(rows[order[first]]) - 1, 8, window)
            part = order[first : first + (most_rows or batch_rows(width * lm.model.vocabulary_size))]
            first += len(part)
            size = row_bucket(len(part), devices.local_devices())
            ids = np.full((size, width + 1), lm.tokenizer.special.line_end, np.int32)
            start, length = np.ones((2, size), np.int32)
            for b, i in enumerate(part):
                ids[b, : len(rows[i])], length[b] = rows[i], len(rows[i])
                start[b] = len(rows[i]) - len(pairs[i][1])
            yield part, program(lm.weights, *devices.split_rows((ids, start, length)))

    for part, found in devices.prefetch(batches()):
        logprobs_B, greedy_B = devices.join_rows(found)
        for i, logprob, greedy in zip(part, logprobs_B, greedy_B, strict=False):
            yield i, Scored(float(logprob), bool(greedy))


def batch_rows(logits: int) -> int:
    """The number of rows of a batch, if each row has this many logits."""
    return devices.local_devices() * next((rows for rows in _ROWS if rows * logits <= _LOGITS), 1)
