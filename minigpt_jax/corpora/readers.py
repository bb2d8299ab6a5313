"""The documents of a file: its lines, its records, what stands between separators, or the whole of it.

A `Reader` holds the user's choices and reads a `Source` with them. Each kind of file has a function of its own.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Literal, cast

from minigpt_jax.corpora import base, files
from minigpt_jax.corpora.base import BinaryFile, holdings, read_lines, readable
from minigpt_jax.corpora.files import Source
from minigpt_jax.errors import UserError
from minigpt_jax.utf8 import check_encoding, decode, decode_chunks

# Any character except white space, control characters and Unicode's Default_Ignorable_Code_Point.
_VISIBLE = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\x9f\\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_ESCAPES = {"\\n": "\n", "\\r": "\r", "\\t": "\t", "\\\\": "\\"}


class Reader:
    """Reads the documents of files. Those without a visible character are skipped.

    Args:
        document: whether a line or a file (or member of a zip file) of plain text is a document.
        text_field: the field of a .jsonl record, or the column of a .parquet file, that holds the text. Each record and
            each row is a document.
        separator: if given, documents of plain text end where it stands. The escapes \\n, \\r, \\t and \\\\ in it stand
            for characters. Line feeds beside it belong to no document.
        flag: the flag by which the user gave the files, for errors.

    Attributes:
        separator: the separator without escapes.
        separators: how many separators were found so far.
    """

    def __init__(
        self,
        document: Literal["line", "file"] = "line",
        text_field: str = "text",
        separator: str | None = None,
        flag: str = "--data.files",
    ):
        self._document = document
        self._text_field = text_field
        self.separator = None if separator is None else _line_feeds(unescaped(separator))
        self._flag = flag
        self.separators = 0

    def documents(self, source: Source) -> Iterator[str]:
        """Streams the documents of a source.

        Raises:
            UserError: the source is damaged, not UTF-8, or not what its name says, or a document is too long.
        """
        label = f"{self._flag} {source.address}"
        with readable(label), files.opened(source) as stream:
            if files.kind_of(source.name) != "zip":
                yield from self._texts(stream, source.name, label)
                return
            with _open_zip(stream, label) as archive:
                for member in _members(archive, label):
                    inner = f"{label}: {member}"
                    with readable(inner), cast(io.BufferedIOBase, archive.open(member)) as text:
                        yield from self._texts(text, member, inner)

    def _texts(self, stream: BinaryFile, name: str, label: str) -> Iterator[str]:
        kind = files.kind_of(name)
        if kind == "jsonl":
            texts = (_field(line, self._text_field, f"{label}:{number}") for number, line in _lines(stream, label))
        elif kind == "parquet":
            from minigpt_jax.corpora import parquet  # imported late, as pyarrow takes long

            texts = parquet.read(stream, self._text_field, label)
        elif self.separator is not None:
            texts = self._separated(stream, self.separator, label)
        elif self._document == "line":
            texts = (line for _, line in _lines(stream, label))
        else:
            texts = [_whole(stream, label)]
        return filter(_VISIBLE.search, texts)

    def _separated(self, stream: BinaryFile, separator: str, label: str) -> Iterator[str]:
        """Yields the texts between separators. Memory is bounded by the length of the longest text."""
        begun: list[str] = []  # what has been read of the next document, without `tail`
        size, tail = 0, ""  # the bytes of it; what may be the beginning of a separator
        for text in _normalised(_chunks(stream, label), label):
            *ended, last = (tail + text).split(separator)
            for rest in ended:
                yield "".join([*begun, rest]).strip("\n")
                begun, size = [], 0
            self.separators += len(ended)
            cut = max(0, len(last) - len(separator) + 1)
            begun.append(last[:cut])
            tail = last[cut:]
            size += len(begun[-1].encode())
            if size > base.MAX_DOCUMENT:
                raise UserError(
                    f"{label}: there is no {separator!r} in {base.MAX_DOCUMENT >> 20} MiB of text, the limit for one "
                    "document; check --data.separator"
                )
        yield "".join([*begun, tail]).strip("\n")


def unescaped(text: str) -> str:
    r"""A text with the characters that its escapes \n, \r, \t and \\ stand for. Other backslashes stay as they are.

    >>> unescaped(r"\n--\section\\n")
    '\n--\\section\\n'
    """
    return re.sub(r"\\[nrt\\]", lambda escape: _ESCAPES[escape[0]], text)


def _line_feeds(text: str) -> str:
    """A text with line feeds as line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(stream: BinaryFile, label: str) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(stream, label, universal=True):
        yield number, line.removeprefix("\ufeff") if number == 1 else line  # a byte order mark


def _chunks(stream: BinaryFile, label: str) -> Iterator[bytes]:
    chunk = stream.read(base.CHUNK)
    check_encoding(chunk, label)
    while chunk:
        yield chunk
        chunk = stream.read(base.CHUNK)


def _normalised(chunks: Iterable[bytes], label: str) -> Iterator[str]:
    """Decodes chunks of a text, without its byte order mark and with line feeds as line ends."""
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    is_first = True
    for text in decode_chunks(chunks, label):
        text = line_ends.decode(text)
        yield text.removeprefix("\ufeff") if is_first else text
        is_first = is_first and not text
    yield line_ends.decode("", final=True)


def _whole(stream: BinaryFile, label: str) -> str:
    """The whole text of a file, with line feeds as line ends."""
    raw = stream.read(base.MAX_DOCUMENT + 1)
    check_encoding(raw, label)
    if len(raw) > base.MAX_DOCUMENT:
        raise UserError(
            f"{label} is longer than {base.MAX_DOCUMENT >> 20} MiB, the limit for one document; "
            "cut it into several files, or use --data.document line or --data.separator TEXT"
        )
    return _line_feeds(decode(raw, label).removeprefix("\ufeff"))


def _field(line: str, field: str, where: str) -> str:
    """The text of one JSON record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); a .jsonl file has one object per line") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, not an object; a .jsonl file has one object per line")
    if field not in record:
        raise UserError(
            f"{where} has no field {field!r}, only {holdings(list(record))}; choose one with --data.text-field"
        )
    if not isinstance(record[field], str):
        raise UserError(f"{where}: field {field!r} is not a string; choose another with --data.text-field")
    return record[field]


def _open_zip(stream: BinaryFile, label: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(cast(io.BufferedIOBase, stream))
    except zipfile.BadZipFile as error:
        raise UserError(f"{label} is not a zip file, or is truncated; download it again") from error


def _members(archive: zipfile.ZipFile, label: str) -> list[str]:
    """The names of an archive's members that hold text, sorted."""
    there = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    # macOS adds a hidden companion to every file.
    texts = [i for i in there if i.filename.lower().endswith((".txt", ".jsonl")) and "__MACOSX" not in i.filename]
    if not texts:
        raise UserError(f"{label} has no .txt or .jsonl member; it holds {holdings([i.filename for i in there])}")
    if encrypted := [info.filename for info in texts if info.flag_bits & 1]:
        verb = "is" if len(encrypted) == 1 else "are"
        raise UserError(f"{label}: {holdings(encrypted)} {verb} encrypted; give an archive without a password")
    return [info.filename for info in texts]
