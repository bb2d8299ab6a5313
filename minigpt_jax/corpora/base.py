"""What a corpus is: three splits of documents, streamed in order, and a fingerprint of all that determines them."""

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Literal, Protocol, get_args, runtime_checkable

from minigpt_jax.errors import UserError
from minigpt_jax.utf8 import check_encoding, decode

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MAX_DOCUMENT = 16 << 20
"""Bytes of a line or a file that is one document; tokenising takes up to 50 times as much memory."""
_CHUNK = 1 << 18


@runtime_checkable
class Corpus(Protocol):
    """Documents of text in three splits. Lengths are not filtered here: the token store does that."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that determines the documents and their splits: contents, never paths or times."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split, streamed, the same ones in the same order every time; none is blank."""
        ...

    def floor(self, split: Split) -> float | None:
        """The entropy of a split's text in nats, where its generator is known; no model goes below it on average."""
        ...


BinaryFile = io.BufferedIOBase | io.RawIOBase
"""A file open for bytes; those of zip and gzip among them, which `typing.IO` does not know at run time."""


def read_lines(stream: BinaryFile, source: str, *, universal: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) of each line that is not blank.

    Lines are those of `tf.data.TextLineDataset`: cut at line feeds alone, every carriage return dropped, so that a
    vertical tab or a Unicode line separator stays within its paragraph. With `universal`, a carriage return ends a line
    too, alone (as on old Macs) or before a line feed. `source` names the stream in errors.

    Raises:
        UserError: at bytes that are not UTF-8, or a line of more than `MAX_DOCUMENT` bytes.
    """
    start = 0
    for number, raw in enumerate(_raw_lines(stream, source, universal), 1):
        line = decode(raw, source, start=start, line=number).removesuffix("\n").replace("\r", "")
        start += len(raw)
        if line.strip():
            yield number, line


def _raw_lines(stream: BinaryFile, source: str, universal: bool) -> Iterator[bytes]:
    """The lines with their ends, in memory bounded by the longest one."""
    done = 0
    rest = stream.read(_CHUNK)
    check_encoding(rest, source)
    while chunk := stream.read(_CHUNK):
        data = rest + chunk
        *lines, rest = data.splitlines(keepends=True) if universal else io.BytesIO(data).readlines()
        yield from lines
        done += len(lines)
        if len(rest) > MAX_DOCUMENT:
            raise UserError(
                f"{source}: line {done + 1} is longer than {MAX_DOCUMENT >> 20} MiB, the most that one document may "
                "have; cut it into shorter lines, e.g. with `fold -s -w 4000`"
            )
    yield from rest.splitlines(keepends=True) if universal else io.BytesIO(rest).readlines()


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns what a missing, damaged or truncated file raises while it is read into one clear line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        # An OSError's own text repeats the path, which the source has already named.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{source} cannot be read: {reason}; get the file again, or check its permissions") from error
