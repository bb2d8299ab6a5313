"""Any text as a corpus: files, globs and folders of .txt, .gz, .zip and .jsonl, with documents held out by their text.

Opening reads all of it once, in bounded memory (8 bytes a document): it finds every error, hashes the contents for the
fingerprint, and learns where to cut the splits.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import re
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from minigpt_jax.corpora.base import MAX_DOCUMENT, Split, read_lines, readable
from minigpt_jax.corpora.simplebooks import holdings, open_zip
from minigpt_jax.errors import UserError
from minigpt_jax.utf8 import check_encoding, decode

ALLOWED = ".txt, .jsonl, .txt.gz, .jsonl.gz or .zip"

# Anything but white space, control characters and Unicode's Default_Ignorable_Code_Point.
_VISIBLE = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\x9f\\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class Text:
    """The user's own files, as a `Corpus`.

    A document's split depends on its text alone (a hash of it falls below one of two cuts), so that a text that occurs
    twice is never in two splits. The cuts are quantiles of the hashes: each of validation and test gets `held_out` of
    the distinct documents, and at least one.

    Args:
        files: files, globs and folders (with all that lies in them), read in this order, each sorted by path.
        document: a line or a file (or zip member) is one document; a .jsonl record always is.
        json_field: the field of a .jsonl record that holds its text.
        held_out: share of the documents for each of validation and test, above 0 and below 0.5.

    Raises:
        UserError: when a file is missing, of another kind, empty, damaged or not UTF-8, a record is not JSON or lacks
            the field, or there are fewer than three distinct documents.
    """

    def __init__(
        self,
        files: Sequence[str],
        document: Literal["line", "file"] = "line",
        json_field: str = "text",
        held_out: float = 0.02,
    ):
        self._document = document
        self._json_field = json_field
        self._sources = _sources(files, "--data.files")
        total = hashlib.sha256()
        keys = array("Q")
        for source in self._sources:
            before = len(keys)
            for text in self._read(source):
                digest = self._digest(text, source)
                total.update(digest)
                keys.append(_key(digest))
            if source.named and len(keys) == before:
                raise UserError(f"--data.files {source.path} holds no text; leave it out or give another file")
        distinct = np.unique(np.frombuffer(keys, np.uint64)) if keys else np.empty(0, np.uint64)
        if (count := len(distinct)) < 3:
            mend = "give more text" + (", or --data.document line" if document == "file" else "")
            raise UserError(
                f"--data.files {holdings(list(files))}: {count or 'no'} distinct document{'' if count == 1 else 's'}, "
                f"and training, validation and test need one each; {mend}"
            )
        held = min(max(round(held_out * count), 1), (count - 1) // 2)
        valid_end, test_end = int(distinct[held]), int(distinct[2 * held])
        self._bounds: dict[Split, tuple[int, int]] = {
            "valid": (0, valid_end),
            "test": (valid_end, test_end),
            "train": (test_end, 1 << 64),
        }
        self.fingerprint = hashlib.sha256(f"text {held} {total.hexdigest()}".encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        low, high = self._bounds[split]
        for source in self._sources:
            for text in self._read(source):
                if low <= _key(self._digest(text, source)) < high:
                    yield text

    def floor(self, split: Split) -> float | None:
        return None

    def _digest(self, text: str, source: "_Source") -> bytes:
        try:
            return hashlib.sha256(text.encode()).digest()
        except UnicodeEncodeError as error:  # only JSON can spell it
            raise UserError(
                f"--data.files {source.path}: a record has half a surrogate pair, {text[error.start]!r}, which is no "
                "character; write it whole"
            ) from error

    def _read(self, source: "_Source") -> Iterator[str]:
        return _documents(source, self._document, self._json_field, "--data.files")


def read_files(
    files: Sequence[str],
    document: Literal["line", "file"] = "line",
    json_field: str = "text",
    *,
    flag: str = "--data.files",
) -> Iterator[str]:
    """The documents of files, globs and folders, as `Text` reads them, with nothing held out.

    Args:
        flag: what the user calls the files, for errors.

    Raises:
        UserError: as `Text` does, but that there may be few of them; it comes as they are read.
    """
    for source in _sources(files, flag):
        yield from _documents(source, document, json_field, flag)


def _documents(source: "_Source", document: str, json_field: str, flag: str) -> Iterator[str]:
    label = f"{flag} {source.path}"
    with readable(label):
        if source.members:
            with zipfile.ZipFile(source.path) as file:  # once for all its members: its directory may be long
                for name in source.members:
                    with readable(f"{label}: {name}"), cast(io.BufferedIOBase, file.open(name)) as stream:
                        yield from _texts(stream, name, document, json_field, f"{label}: {name}")
        else:
            open_file: Any = gzip.open if source.path.suffix.lower() == ".gz" else open
            with open_file(source.path, "rb") as stream:
                yield from _texts(stream, source.path.name, document, json_field, label)


def _texts(stream: io.BufferedIOBase, name: str, document: str, json_field: str, label: str) -> Iterator[str]:
    """The documents of one file or member, without those that show nothing."""
    if name.lower().removesuffix(".gz").endswith(".jsonl"):
        texts = (_field(line, json_field, f"{label}:{number}") for number, line in _lines(stream, label))
    elif document == "line":
        texts = (line for _, line in _lines(stream, label))
    else:
        texts = [_whole(stream, label)]
    yield from filter(_VISIBLE.search, texts)


def _lines(stream: io.BufferedIOBase, label: str) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(stream, label, universal=True):
        yield number, line.removeprefix("\ufeff") if number == 1 else line  # a byte order mark


def _whole(stream: io.BufferedIOBase, label: str) -> str:
    """All of a file, its lines parted by line feeds."""
    raw = stream.read(MAX_DOCUMENT + 1)
    check_encoding(raw, label)
    if len(raw) > MAX_DOCUMENT:
        raise UserError(
            f"{label} is longer than {MAX_DOCUMENT >> 20} MiB, the most that one document may have; "
            "cut it into several files, or take --data.document line"
        )
    return decode(raw, label).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class _Source:
    """A file, or the members of a zip that are read."""

    path: Path
    members: tuple[str, ...] = ()
    named: bool = False  # by itself, not found by a glob or in a folder


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _field(line: str, field: str, where: str) -> str:
    """The text of one JSON record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); a .jsonl file has one object a line") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, not an object; a .jsonl file has one object a line")
    if field not in record:
        raise UserError(
            f"{where} has no field {field!r}, only {holdings(list(record))}; name one with --data.json-field"
        )
    if not isinstance(record[field], str):
        raise UserError(f"{where}: field {field!r} is no string; name another with --data.json-field")
    return record[field]


def _sources(specs: Sequence[str], flag: str) -> list[_Source]:
    """All files that the user's words stand for, each once, in a fixed order."""
    seen: set[Path] = set()
    sources = []
    for spec in specs:
        with readable(f"{flag} {spec}"):
            given = Path(os.path.expanduser(spec))
            for path in _expand(given, f"{flag} {spec}"):
                if (identity := path.resolve()) in seen:
                    continue
                seen.add(identity)
                members = _zip_members(path, f"{flag} {path}") if path.suffix.lower() == ".zip" else ()
                sources.append(_Source(path, members, named=path == given))
    return sources


def _expand(given: Path, flag: str) -> list[Path]:
    if given.is_file():
        if not _is_supported(given):
            raise UserError(f"{flag} is of a kind that is not read; give {ALLOWED}")
        return [given]
    if given.is_dir():
        found = _walk([given])
    elif given.exists():
        raise UserError(f"{flag} is neither a file nor a folder; give {ALLOWED}")
    elif glob.has_magic(str(given)):
        matches = [Path(match) for match in sorted(glob.glob(str(given), recursive=True))]
        if not matches:
            raise UserError(f"{flag} matches nothing; check the pattern (** goes into folders), and quote it")
        found = [path for match in matches for path in (_walk([match]) if match.is_dir() else [match])]
    else:
        raise UserError(f"{flag}: no such file or folder; give files, globs or folders of {ALLOWED}")
    supported = [path for path in found if _is_supported(path)]
    if not supported:
        raise UserError(f"{flag} has no {ALLOWED} file, only {holdings(sorted(path.name for path in found))}")
    for path in supported:
        if not path.is_file():  # the text is read several times, and a pipe would wait for a writer
            raise UserError(f"{flag}: {path} is a pipe, a device or a broken link, not a file; take it out")
    return supported


def _walk(folders: list[Path]) -> list[Path]:
    """The files in the folders and in theirs, hidden ones left out, sorted by path.

    Links to folders are followed last, so that a folder is read once and by its own name if it has one here.
    """

    def fail(error: OSError):
        raise error

    found: list[Path] = []
    seen: set[Path] = set()
    while folders:
        links = []
        for folder in folders:
            for parent, inner, files in os.walk(folder, onerror=fail):
                identity = Path(parent).resolve()
                inner[:] = [] if identity in seen else [name for name in inner if not name.startswith(".")]
                links += [path for name in inner if (path := Path(parent, name)).is_symlink()]
                if identity not in seen:
                    found += [Path(parent, name) for name in files if not name.startswith(".")]
                seen.add(identity)
        folders = sorted(links)
    return sorted(found)


def _zip_members(path: Path, label: str) -> tuple[str, ...]:
    with open_zip(path, label) as file:
        there = sorted((info for info in file.infolist() if not info.is_dir()), key=lambda info: info.filename)
    # macOS puts a hidden twin beside every file.
    texts = [i for i in there if i.filename.lower().endswith((".txt", ".jsonl")) and "__MACOSX" not in i.filename]
    if not texts:
        raise UserError(f"{label} has no .txt or .jsonl member; it holds {holdings([i.filename for i in there])}")
    if encrypted := [info.filename for info in texts if info.flag_bits & 1]:
        raise UserError(f"{label}: {holdings(encrypted)} encrypted; give an archive without a password")
    return tuple(info.filename for info in texts)


def _is_supported(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((".txt", ".jsonl", ".zip", ".gz")) and not name.endswith(".tar.gz")
