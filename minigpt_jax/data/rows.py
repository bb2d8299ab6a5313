"""Rows: the text of a split as a matrix of token ids, and the three layouts that cut documents into rows.

A row is T + 1 ids: features and labels, which overlap (`batch.Batch`). Which token begins and ends a text, the
tokenizer says (`tokenizer.SpecialIds`). In the `lines` layout a row is the start token and the first T ids of one long
document, and the end token fills the rest. In the `packed` layout the text of all documents is one stream,
`start document start document … start`, cut into rows that overlap by one id. Every id but the first is then a label
exactly once, and the label at the end of a document is the start token. In the `whole` layout a row holds whole
documents, `start document start document start`, as many as fit, and padding. Every id is a label exactly once here
too, but no document is cut that fits into a row, so each token has all of its document before it.
"""

import zipfile
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minigpt_jax.data.batch import Batch
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import SpecialIds

Encoded = tuple[np.ndarray, np.ndarray, int]
"""An encoded document: its ids [n], the number of UTF-8 bytes of text up to the end of each id [n], and in all."""
Cut = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Some rows: their ids [n, T+1], and for each row the bytes of its labels [n] and the number of its ids [n]."""
Piece = tuple[np.ndarray, np.ndarray]
"""A part of a document: its ids [n], and the bytes of text that each id stands for [n]."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        rows: [rows, T+1] token ids.
        bytes: [rows] the number of UTF-8 bytes of the original text that each row's labels stand for.
        lengths: [rows] the number of ids of each row that are of the text; those after them are padding.
        floor: the entropy of these texts in nats, ends of documents included. None if the generator of the corpus is
            unknown or the rows do not hold all of its text.
    """

    rows: np.ndarray
    bytes: np.ndarray
    lengths: np.ndarray
    floor: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def floor_bits_per_byte(self) -> float | None:
        return None if self.floor is None else self.floor / np.log(2) / int(self.bytes.sum())

    def steps_per_epoch(self, batch_size: int) -> int:
        """The number of batches that hold every row once. The last one may be padded."""
        return -(-len(self) // batch_size)

    def take(self, indices: np.ndarray) -> Batch:
        """The rows at these indices. An index past the end gives a row of length 0, which has no weight."""
        inside = indices < len(self)
        safe = np.where(inside, indices, 0)
        return Batch(
            np.where(inside[:, None], self.rows[safe], self.rows.dtype.type(0)),
            np.where(inside, self.bytes[safe], np.int32(0)),
            np.where(inside, self.lengths[safe], np.int32(0)),
        )

    def in_order(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """Yields every row once, in order, for evaluation: this process's part of each batch. The last is padded."""
        share = batch_size // process_count
        for start in range(process_index * share, len(self) + process_index * share, batch_size):
            yield self.take(np.arange(start, start + share))

    def save(self, file: Path | BinaryIO) -> None:
        np.savez_compressed(
            file,
            rows=self.rows,
            bytes=self.bytes,
            lengths=self.lengths,
            floor=np.float64(np.nan if self.floor is None else self.floor),
        )

    @classmethod
    def load(cls, path: Path) -> "Rows":
        """Loads what `save` wrote. Raises UserError if the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rows, sizes, floor = arrays["rows"], arrays["bytes"], float(arrays["floor"])
                lengths = arrays["lengths"] if "lengths" in arrays else zero_padded_lengths(rows)
            kinds = rows.dtype.kind + sizes.dtype.kind + lengths.dtype.kind
            shapes = {sizes.shape, lengths.shape}
            if kinds not in ("uii", "iii") or rows.ndim != 2 or shapes != {rows.shape[:1]}:
                raise ValueError("its arrays have unexpected shapes or types")
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is missing; restore it, or write it again by resuming the run with the same command"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or write it again by resuming the run with the same command"
            ) from error
        return cls(rows, sizes, lengths, None if np.isnan(floor) else floor)


def zero_padded_lengths(rows: np.ndarray) -> np.ndarray:
    """The lengths of rows that were written without them, when every tokenizer had id 0 for padding and nothing else.

    >>> zero_padded_lengths(np.array([[2, 5, 0], [2, 5, 6]]))
    array([2, 3], dtype=int32)
    """
    return np.count_nonzero(rows, axis=1).astype(np.int32)


def line_rows(encoded: Iterator[Encoded], length: int, special: SpecialIds) -> Iterator[Cut]:
    """One row per document, its prefix.

    >>> document = np.array([5, 6]), np.array([3, 8]), 8  # ids, the end of each one's text, bytes in all
    >>> list(line_rows(iter([document]), length=4, special=SpecialIds(start=2, line_end=0)))
    [(array([[2, 5, 6, 0]]), array([8]), array([3]))]
    """
    for ids, ends, _ in encoded:
        if len(ids):
            ids, ends = ids[: length - 1], ends[: length - 1]
            row = np.full(length, special.line_end, np.int64)
            row[0] = special.start
            row[1 : 1 + len(ids)] = ids
            yield row[None], ends[-1:], np.array([1 + len(ids)])


def without_prefixes(encoded: Iterator[Encoded], length: int, min_bytes: int) -> Iterator[Encoded]:
    """Removes from each document the prefix that is its row in the `lines` layout, if it has one."""
    for ids, ends, text_bytes in encoded:
        if text_bytes <= min_bytes:
            yield ids, ends, text_bytes
        elif len(ids) >= length:
            prefix = ends[length - 2]
            yield ids[length - 1 :], ends[length - 1 :] - prefix, text_bytes - prefix


def packed_rows(encoded: Iterator[Encoded], length: int, special: SpecialIds) -> Iterator[Cut]:
    """Cuts the stream of all documents. Yields about 1,024 rows at a time."""
    step = length - 1
    ids_parts, sizes_parts = [np.array([special.start])], [np.array([0])]
    pending = 1

    def cut(last: bool) -> Cut:
        nonlocal ids_parts, sizes_parts, pending
        ids, sizes = np.concatenate(ids_parts), np.concatenate(sizes_parts)
        count = (len(ids) - 1) // step
        lengths = np.full(count, length)
        if last and (len(ids) - 1) % step:
            count += 1
            lengths = np.append(lengths, (len(ids) - 1) % step + 1)
            ids = np.pad(ids, (0, count * step + 1 - len(ids)))
            sizes = np.pad(sizes, (0, count * step + 1 - len(sizes)))
        if not count:
            return np.zeros((0, length), np.int64), np.zeros(0, np.int64), lengths
        rows = np.lib.stride_tricks.sliding_window_view(ids, length)[::step][:count]
        # The bytes of a row are those of its labels. Its first id is only a feature: it is a label of the row before.
        row_bytes = sizes[1 : 1 + count * step].reshape(count, step).sum(axis=1)
        ids_parts, sizes_parts = [ids[count * step :]], [sizes[count * step :]]
        pending = len(ids_parts[0])
        return rows, row_bytes, lengths

    for ids, ends, text_bytes in encoded:
        # The start token after a document counts the bytes that follow its last token, so that all bytes are counted.
        sizes = np.diff(np.append(ends, text_bytes), prepend=0)
        ids_parts += [ids, np.array([special.start])]
        sizes_parts.append(sizes)
        pending += len(ids) + 1
        if pending > 1024 * length:
            yield cut(last=False)
    yield cut(last=True)


def whole_rows(encoded: Iterator[Encoded], length: int, special: SpecialIds) -> Iterator[Cut]:
    """Puts whole documents into rows, as many as fit. Yields about 1,024 rows at a time.

    A document goes to the row that it fills best, the longest ones first (Ding et al. 2024, best-fit packing). One that
    is longer than a row fills rows of its own, which overlap by one id, and its rest is placed as a document is.

    >>> documents = (np.arange(5, 5 + n) for n in (2, 1, 3))
    >>> encoded = ((ids, np.arange(len(ids)) + 1, len(ids)) for ids in documents)
    >>> for rows, sizes, lengths in whole_rows(encoded, length=6, special=SpecialIds(start=2, line_end=0)):
    ...     print(rows.tolist(), sizes.tolist(), lengths.tolist())
    [[2, 5, 6, 7, 2, 0], [2, 5, 6, 2, 5, 2]] [3, 3] [5, 6]
    """
    pieces: list[Piece] = []
    pending = 0
    for ids, ends, text_bytes in encoded:
        row = np.concatenate([[special.start], ids, [special.start]])
        sizes = np.concatenate([[0], np.diff(np.append(ends, text_bytes), prepend=0)])
        for start in range(0, len(row) - 1, length - 1):
            pieces.append((row[start : start + length], sizes[start : start + length]))
        pending += len(ids) + 1
        if pending > 1024 * length:
            yield _best_fit(pieces, length, special.start)
            pieces, pending = [], 0
    if pieces:
        yield _best_fit(pieces, length, special.start)


def _best_fit(pieces: list[Piece], length: int, start: int) -> Cut:
    """Rows of these documents. A piece that does not begin with the start token has to begin its row."""
    rows = np.zeros((len(pieces), length), np.int64)
    row_bytes, lengths = np.zeros(len(pieces), np.int64), np.zeros(len(pieces), np.int64)
    room: list[tuple[int, int]] = []  # the free ids of each row that has some, and its number, in order
    count = 0
    for ids, sizes in sorted(pieces, key=lambda piece: (piece[0][0] == start, -len(piece[0]))):
        # In a row that has begun, the start token is there already: it ends the document before.
        place = bisect_left(room, (len(ids) - 1, 0)) if ids[0] == start else len(room)
        if place < len(room):
            _, row = room.pop(place)
            ids, first = ids[1:], lengths[row]
        else:
            row, first = count, 0
            count += 1
        rows[row, first : first + len(ids)] = ids
        lengths[row] = first + len(ids)
        row_bytes[row] += sizes[1:].sum()
        if ids[-1] == start and lengths[row] < length - 1:
            insort(room, (length - int(lengths[row]), row))
    return rows[:count], row_bytes[:count], lengths[:count]


CUT = {"lines": line_rows, "packed": packed_rows, "whole": whole_rows}
