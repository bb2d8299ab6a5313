"""Prefixes of held-out text and the human continuations of them, cut from the rows of a run directory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minigpt_jax.config import Layout
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError


class HeldOut(NamedTuple):
    """A piece of held-out text.

    Attributes:
        prefix: the token ids of its start, without the start token.
        continuation: the ids that follow in the text, and the end token if the document ends there.
    """

    prefix: list[int]
    continuation: list[int]


def held_out(
    rows: Rows,
    layout: Layout,
    start_id: int,
    end_id: int,
    prompts: int,
    prompt_tokens: int,
    new_tokens: int,
    seed: int = 0,
) -> list[HeldOut]:
    """Cuts prefixes and their continuations from the documents of a split.

    The beginnings of documents come first. If there are too few of them, later parts of long documents follow. Which
    ones are taken depends on the seed alone.

    Args:
        rows: the rows of a split.
        layout: how they were cut.
        start_id: the token at the start of a row or a document.
        end_id: the token that stands for the end of a document.
        prompts: how many to take; fewer if the text does not have as many.
        prompt_tokens: the number of tokens in a prefix.
        new_tokens: the most tokens in a continuation.

    Raises:
        UserError: no document has a prefix of `prompt_tokens` tokens that continues for `new_tokens` tokens or to the
            document's end.
    """
    size = prompt_tokens + new_tokens
    beginnings, later = [], []
    for ids, ended in _documents(rows, layout, start_id):
        for start in range(0, len(ids) - prompt_tokens, size):
            part = ids[start : start + size]
            rest = part[prompt_tokens:].tolist() + ([end_id] if ended and start + size > len(ids) else [])
            if len(rest) == new_tokens or (ended and rest):
                (later if start else beginnings).append(HeldOut(part[:prompt_tokens].tolist(), rest))
    if not beginnings and not later:
        raise UserError(
            f"--prompt-tokens {prompt_tokens}: no held-out document is long enough to continue for --max-new-tokens "
            f"{new_tokens}; give fewer of either"
        )
    rng = np.random.default_rng(seed % 2**64)  # NumPy takes no negative seed
    chosen = [group[i] for group in (beginnings, later) for i in rng.permutation(len(group))]
    return chosen[:prompts]


def _documents(rows: Rows, layout: Layout, start_id: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The ids of each document without the start token, and whether the rows hold the document's end."""
    width = rows.rows.shape[1]
    if layout == "lines":  # each row is the beginning of a document
        for row, length in zip(rows.rows, rows.lengths, strict=True):
            yield row[1:length], bool(length < width)
        return
    if not len(rows):
        return
    streams = [row[:length] for row, length in zip(rows.rows, rows.lengths, strict=True)]
    if layout == "packed":  # rows overlap by one id
        streams = [np.concatenate([*(row[: width - 1] for row in streams[:-1]), streams[-1]])]
    for stream in streams:
        [starts] = np.nonzero(stream == start_id)
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            if start + 1 != (end or len(stream)):
                yield stream[start + 1 : end], end is not None
