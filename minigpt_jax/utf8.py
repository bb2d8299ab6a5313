"""Decodes bytes as UTF-8, and reports text in another encoding in one clear line."""

import codecs
import itertools
from collections.abc import Iterable, Iterator

from minigpt_jax.errors import UserError

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # tested before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ZEROS = {"x0x0": "utf-16le", "0x0x": "utf-16be", "x000": "utf-32le", "000x": "utf-32be"}
"""The encoding, by which of every four bytes are often zero in text with many ASCII characters."""


def check_encoding(head: bytes, source: str) -> None:
    """Raises UserError if a text that begins with these bytes is UTF-16 or UTF-32. `source` names it in the message.

    Without a byte order mark such text may be valid UTF-8 with a NUL beside each letter.
    """
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    zeros = [head[i : 1 << 12 : 4].count(0) for i in range(4)]
    if not found and 40 * max(zeros) > len(head[: 1 << 12]):  # a tenth of a quarter; stray ones are rarer
        found = _ZEROS.get("".join("0" if 8 * count > max(zeros) else "x" for count in zeros))
    if found:
        raise UserError(
            f"{source} is {found[:6].upper()}, not UTF-8; convert it, e.g. with `iconv -f {found} -t utf-8`"
        )


def decode(raw: bytes, source: str, *, start: int = 0, line: int | None = None) -> str:
    """Decodes UTF-8 strictly.

    Args:
        raw: the bytes to decode.
        source: the name of their source, for errors.
        start: the offset of `raw` in the source.
        line: the number of the line, if it is known.

    Raises:
        UserError: the bytes are not UTF-8. The message has the offset of the first invalid byte.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        where = f"byte {start + error.start}" + (f" (line {line})" if line else "")
        raise _not_utf8(error, source, where) from error


def decode_chunks(chunks: Iterable[bytes], source: str) -> Iterator[str]:
    """Decodes UTF-8 strictly, chunk by chunk. A character may be cut by the border of two chunks.

    Args:
        chunks: the bytes to decode.
        source: the name of their source, for errors.

    Raises:
        UserError: the bytes are not UTF-8. The message has the offset of the first invalid byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    for chunk in itertools.chain(chunks, [b""]):
        start = done - len(decoder.getstate()[0])  # of what is decoded now, with the cut character before the chunk
        done += len(chunk)
        try:
            yield decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, source, f"byte {start + error.start}") from error


def _not_utf8(error: UnicodeDecodeError, source: str, where: str) -> UserError:
    return UserError(
        f"{source} is not UTF-8: 0x{error.object[error.start]:02x} at {where}; "
        "convert it, e.g. with `iconv -f latin1 -t utf-8`"
    )
