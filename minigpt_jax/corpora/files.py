"""The files of a corpus: those that the user's paths stand for, and their bytes.

A path is a file, a glob or a folder, on disk or at an address such as `hf://…` (see `remote`).
"""

import contextlib
import glob
import gzip
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from backports import zstd

from minigpt_jax.corpora.base import BinaryFile, holdings, readable
from minigpt_jax.errors import UserError, refuse_credentials

ALLOWED = ".txt, .jsonl, .parquet or .zip, or .txt and .jsonl compressed as .gz or .zst"

_COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".zst": zstd.ZstdFile,
}
_PLAIN = (".txt", ".jsonl", ".parquet", ".zip")
_NEVER_COMPRESSED = (".tar", ".parquet", ".zip")


@dataclass(frozen=True)
class Source:
    """A file of text.

    Attributes:
        address: its path, or its address elsewhere, as errors name it.
        name: its name without folders.
        open_bytes: opens it for reading. If the argument is True, the file can seek.
        version: a string that changes whenever the contents do, or None if the service offers none.
        named: whether the user gave this very path, and not a glob or a folder.
    """

    address: str
    name: str
    open_bytes: Callable[[bool], io.BufferedIOBase]
    version: str | None = None
    named: bool = False


def kind_of(name: str) -> Literal["text", "jsonl", "parquet", "zip"]:
    """What a file with this name holds, compressed or not.

    >>> kind_of("a.jsonl.ZST"), kind_of("b.gz")
    ('jsonl', 'text')
    """
    inner, _ = _split_compression(name)
    if inner.endswith(".jsonl"):
        return "jsonl"
    if inner.endswith(".parquet"):
        return "parquet"
    return "zip" if inner.endswith(".zip") else "text"


def is_supported(name: str) -> bool:
    """Whether files with this name can be read."""
    inner, compression = _split_compression(name)
    return not inner.endswith(_NEVER_COMPRESSED) if compression else inner.endswith(_PLAIN)


def _split_compression(name: str) -> tuple[str, str]:
    """A name in lower case without the suffix of a compression, and that suffix."""
    name = name.lower()
    compression = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    return name.removesuffix(compression), compression


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryFile]:
    """Opens a source for reading, decompressed. A .zip or .parquet file can seek."""
    with source.open_bytes(kind_of(source.name) in ("zip", "parquet")) as raw:
        compression = _split_compression(source.name)[1]
        with _COMPRESSED[compression](raw) if compression else raw as file:
            yield cast(BinaryFile, file)


def find(paths: Sequence[str], flag: str) -> list[Source]:
    """All files that the user's paths stand for, each once, in a fixed order.

    Args:
        paths: files, globs, folders, and addresses of them.
        flag: the flag by which the user gave the paths, for errors.

    Raises:
        UserError: a path stands for no file that can be read.
    """
    found: dict[str, Source] = {}
    for path in paths:
        if "://" in path:
            refuse_credentials(path, flag)
            from minigpt_jax.corpora import remote  # imported late, as fsspec is rarely needed

            for source in remote.find(path, flag):
                found.setdefault(source.address, source)
        else:
            given = Path(os.path.expanduser(path))
            with readable(f"{flag} {path}"):
                for file in _expand(given, f"{flag} {path}"):
                    source = Source(str(file), file.name, _opener(file), named=file == given)
                    found.setdefault(str(file.resolve()), source)
    return list(found.values())


def _opener(path: Path) -> Callable[[bool], io.BufferedIOBase]:
    return lambda _: path.open("rb")


def _expand(given: Path, flag: str) -> list[Path]:
    if given.is_file():
        if not is_supported(given.name):
            raise UserError(f"{flag} is not of a supported kind; give {ALLOWED}")
        return [given]
    if given.is_dir():
        found = _walk([given])
    elif given.exists():
        raise UserError(f"{flag} is neither a file nor a folder; give {ALLOWED}")
    elif glob.has_magic(str(given)):
        matches = [Path(match) for match in sorted(glob.glob(str(given), recursive=True))]
        if not matches:
            raise UserError(f"{flag} matches no file; check the pattern (** matches folders), and quote it")
        found = [path for match in matches for path in (_walk([match]) if match.is_dir() else [match])]
    else:
        raise UserError(f"{flag}: no such file or folder; give files, globs or folders of {ALLOWED}")
    supported = [path for path in found if is_supported(path.name)]
    if not supported:
        raise UserError(
            f"{flag} has no file of a supported kind ({ALLOWED}), only {holdings(sorted(path.name for path in found))}"
        )
    for path in supported:
        if not path.is_file():  # files are read several times, and reading a pipe would block
            raise UserError(f"{flag}: {path} is a pipe, a device or a broken link, not a file; remove it")
    return supported


def _walk(folders: list[Path]) -> list[Path]:
    """The files in the folders and their subfolders, without hidden ones, sorted by path.

    Links to folders are followed last. A folder that can be reached in several ways is read once, by its own path if
    possible.
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
