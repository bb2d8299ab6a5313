"""What a corpus is: three splits of documents, streamed in order, and a fingerprint of all that determines them."""

import contextlib
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, Literal, Protocol, cast, get_args

from minigpt_jax.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Corpus(Protocol):
    """Documents of text in three splits. Lengths are not filtered here: the token store does that."""

    @property
    def name(self) -> str: ...

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


def read_lines(stream: Iterable[bytes], source: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text) of each line that is not blank.

    Lines are those of `tf.data.TextLineDataset`: cut at line feeds alone, every carriage return dropped, so that a
    vertical tab or a Unicode line separator stays within its paragraph. `source` names the stream in errors.

    Raises:
        UserError: at bytes that are not UTF-8.
    """
    start = 0
    for number, raw in enumerate(stream, 1):
        line = decode(raw, source, start=start, line=number).removesuffix("\n").replace("\r", "")
        start += len(raw)
        if line.strip():
            yield number, line


def decode(raw: bytes, source: str, *, start: int = 0, line: int | None = None) -> str:
    """UTF-8, strictly; `start` is the offset of `raw` in its source.

    Raises:
        UserError: naming the byte offset of the first wrong byte, and the line where it is known.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        where = f"byte {start + error.start}" + (f" (line {line})" if line else "")
        raise UserError(
            f"{source} is not UTF-8: 0x{raw[error.start]:02x} at {where}; "
            "convert it, e.g. with `iconv -f latin1 -t utf-8`"
        ) from error


def buffered(stream: IO[bytes] | io.RawIOBase) -> BinaryIO:
    """The stream with lines cut in C: a zip member cuts its own in Python."""
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns what a missing, damaged or truncated file raises while it is read into one clear line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        # An OSError's own text repeats the path, which the source has already named.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{source} cannot be read: {reason}; get the file again, or check its permissions") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
