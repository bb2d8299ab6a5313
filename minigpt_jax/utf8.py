"""Bytes to text: UTF-8 alone, with one clear line about text in another encoding."""

import codecs

from minigpt_jax.errors import UserError

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ZEROS = {"x0x0": "utf-16le", "0x0x": "utf-16be", "x000": "utf-32le", "000x": "utf-32be"}
"""Which of every four bytes are often zero, as ASCII characters make them."""


def check_encoding(head: bytes, source: str) -> None:
    """Raises UserError if a text that begins with these bytes is UTF-16 or UTF-32; `source` names it.

    Without a byte order mark such text can pass for UTF-8 with a NUL beside each letter.
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
