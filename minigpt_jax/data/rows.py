"""Rows: a split's text as a matrix of token ids, and how documents are cut into them.

A row is T + 1 ids: features and labels, which overlap (`batch.Batch`). In the `lines` layout it is [BOS] and the first
T ids of one long document, padded; in the `packed` layout the text of all documents is one stream,
`[BOS] document [BOS] document … [BOS]`, cut into rows that overlap by one id, so that every id but the first is a
label once and a document's end is the label [BOS].
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from minigpt_jax.config import BOS_ID
from minigpt_jax.data.batch import Batch
from minigpt_jax.errors import UserError

Layout = Literal["lines", "packed"]
Encoded = tuple[np.ndarray, np.ndarray, int]
"""A document: its ids, [n], the UTF-8 bytes of text up to the end of each, [n], and the bytes of all of it."""


@dataclass(frozen=True)
class Rows:
    """One split's rows.

    Attributes:
        rows: [rows, T+1] token ids.
        bytes: [rows] UTF-8 bytes of the original text that a row's labels stand for.
        floor: nats that the corpus's own generator gives these texts, ends included, where there is one and the rows
            hold all of their text.
    """

    rows: np.ndarray
    bytes: np.ndarray
    floor: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def floor_bits_per_byte(self) -> float | None:
        return None if self.floor is None else self.floor / np.log(2) / int(self.bytes.sum())

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches that hold every row once, the last one filled up."""
        return -(-len(self) // batch_size)

    def take(self, indices: np.ndarray) -> Batch:
        """Rows by index; an index past the end gives a row of zeros, which weighs nothing."""
        inside = indices < len(self)
        safe = np.where(inside, indices, 0)
        return Batch(
            np.where(inside[:, None], self.rows[safe], self.rows.dtype.type(0)),
            np.where(inside, self.bytes[safe], np.int32(0)),
        )

    def in_order(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """All rows once, a process's share of each batch, for evaluation; the last batch is filled up."""
        share = batch_size // process_count
        for start in range(process_index * share, len(self) + process_index * share, batch_size):
            yield self.take(np.arange(start, start + share))

    def save(self, file: Path | BinaryIO) -> None:
        np.savez_compressed(
            file, rows=self.rows, bytes=self.bytes, floor=np.float64(np.nan if self.floor is None else self.floor)
        )

    @classmethod
    def load(cls, path: Path) -> "Rows":
        """Raises UserError where the file is missing, damaged or not what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rows, sizes, floor = arrays["rows"], arrays["bytes"], float(arrays["floor"])
            kinds = rows.dtype.kind + sizes.dtype.kind
            if kinds not in ("ui", "ii") or rows.ndim != 2 or sizes.shape != rows.shape[:1]:
                raise ValueError("its arrays are of other shapes or types")
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; restore it, or train on: the same command again writes it") from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or train on: the same command again writes it"
            ) from error
        return cls(rows, sizes, None if np.isnan(floor) else floor)


def line_rows(encoded: Iterator[Encoded], length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A row a document, its head: ids [1, length], and the bytes of text that they stand for, [1]."""
    for ids, ends, _ in encoded:
        if len(ids):
            ids, ends = ids[: length - 1], ends[: length - 1]
            row = np.zeros(length, np.int64)
            row[0] = BOS_ID
            row[1 : 1 + len(ids)] = ids
            yield row[None], ends[-1:]


def without_heads(encoded: Iterator[Encoded], length: int, min_bytes: int) -> Iterator[Encoded]:
    """Of the documents that are rows in the lines layout, what stands after those rows; the others as they are."""
    for ids, ends, text_bytes in encoded:
        if text_bytes <= min_bytes:
            yield ids, ends, text_bytes
        elif len(ids) >= length:
            head = ends[length - 2]
            yield ids[length - 1 :], ends[length - 1 :] - head, text_bytes - head


def packed_rows(encoded: Iterator[Encoded], length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents as one stream, about 1,024 rows at a time: ids [n, length], and the bytes of their labels, [n]."""
    step = length - 1
    ids_parts, sizes_parts = [np.array([BOS_ID])], [np.array([0])]
    pending = 1

    def cut(last: bool) -> tuple[np.ndarray, np.ndarray]:
        nonlocal ids_parts, sizes_parts, pending
        ids, sizes = np.concatenate(ids_parts), np.concatenate(sizes_parts)
        count = (len(ids) - 1) // step
        if last and (len(ids) - 1) % step:
            count += 1
            ids = np.pad(ids, (0, count * step + 1 - len(ids)))
            sizes = np.pad(sizes, (0, count * step + 1 - len(sizes)))
        if not count:
            return np.zeros((0, length), np.int64), np.zeros(0, np.int64)
        rows = np.lib.stride_tricks.sliding_window_view(ids, length)[::step][:count]
        # A row's bytes are its labels': the id that it shares with the row before belongs to that one.
        row_bytes = sizes[1 : 1 + count * step].reshape(count, step).sum(axis=1)
        ids_parts, sizes_parts = [ids[count * step :]], [sizes[count * step :]]
        pending = len(ids_parts[0])
        return rows, row_bytes

    for ids, ends, text_bytes in encoded:
        # The boundary after a document carries what follows its last token, so that all bytes are counted.
        sizes = np.diff(np.append(ends, text_bytes), prepend=0)
        ids_parts += [ids, np.array([BOS_ID])]
        sizes_parts.append(sizes)
        pending += len(ids) + 1
        if pending > 1024 * length:
            yield cut(last=False)
    yield cut(last=True)


CUT = {"lines": line_rows, "packed": packed_rows}
