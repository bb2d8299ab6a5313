"""The interface of a corpus: three splits of documents, streamed in order, and a fingerprint of their contents."""

import contextlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from backports import zstd

from minigpt_jax.errors import UserError
from minigpt_jax.utf8 import check_encoding, decode

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MAX_DOCUMENT = 16 << 20
"""The most bytes of a document. Tokenising a document takes up to 50 times as much memory."""
CHUNK = 1 << 18
"""The bytes that are read at a time."""
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile, NotImplementedError)


@runtime_checkable
class Corpus(Protocol):
    """Documents of text in three splits. Lengths are not filtered here: the token store does that."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of what determines the documents and their splits: contents, not paths or times."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """Streams the documents of a split, always the same ones in the same order. None of them is blank."""
        ...

    def floor(self, split: Split) -> float | None:
        """The entropy of a split's text in nats, below which no expected loss can be; None if it is unknown."""
        ...


def document_bytes(corpus: Corpus, split: Split) -> np.ndarray:
    """The UTF-8 bytes of each document of a split [number of documents].

    A corpus that knows them has a method `document_bytes(split)`. The documents of another one are read.
    """
    known = getattr(corpus, "document_bytes", None)
    if known is not None:
        return known(split)
    return np.fromiter((len(text.encode()) for text in corpus.documents(split)), np.int64)


BinaryFile = io.BufferedIOBase | io.RawIOBase
"""A file open for reading bytes. Unlike `typing.IO[bytes]`, it includes members of zip and gzip files at run time."""


def read_lines(stream: BinaryFile, source: str, *, universal: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line that is not blank.

    Lines are those of `tf.data.TextLineDataset`: only line feeds end a line, and all carriage returns are dropped, so
    that a vertical tab or a Unicode line separator stays within its paragraph. With `universal`, a carriage return also
    ends a line, alone (as on old Macs) or before a line feed. `source` names the stream in errors.

    Raises:
        UserError: the stream is not UTF-8, or a line has more than `MAX_DOCUMENT` bytes.
    """
    start = 0
    for number, raw in enumerate(_raw_lines(stream, source, universal), 1):
        line = decode(raw, source, start=start, line=number).removesuffix("\n").replace("\r", "")
        start += len(raw)
        if line.strip():
            yield number, line


def _raw_lines(stream: BinaryFile, source: str, universal: bool) -> Iterator[bytes]:
    """Yields the lines with their ends. Memory is bounded by the length of the longest line."""
    done = 0
    rest = stream.read(CHUNK)
    check_encoding(rest, source)
    while chunk := stream.read(CHUNK):
        data = rest + chunk
        *lines, rest = data.splitlines(keepends=True) if universal else io.BytesIO(data).readlines()
        yield from lines
        done += len(lines)
        if len(rest) > MAX_DOCUMENT:
            raise UserError(
                f"{source}: line {done + 1} is longer than {MAX_DOCUMENT >> 20} MiB, the limit for one document; cut "
                "it into shorter lines, e.g. with `fold -s -w 4000`"
            )
    yield from rest.splitlines(keepends=True) if universal else io.BytesIO(rest).readlines()


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns the exceptions of reading a missing, damaged or truncated file into a UserError of one line."""
    try:
        yield
    except _DAMAGED as error:
        # The text of an OSError repeats the path, which `source` already has.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{source} cannot be read: {reason}; download or copy the file again, or check its permissions"
        ) from error


def holdings(names: list[str], most: int = 6) -> str:
    """A list of names for an error message, of which at most `most` are spelled out."""
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
