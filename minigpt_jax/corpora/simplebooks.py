"""SimpleBooks: paragraphs of 1,573 Gutenberg books in simple English (Nguyen, 2019, arXiv:1911.12391).

Each line is a paragraph. An archive given by the user is read directly from the zip file. A downloaded one is unpacked
into the cache (see `simplebooks_download`). In both cases damaged bytes are noticed when they are read.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args, get_type_hints

from minigpt_jax import files
from minigpt_jax.config import DataConfig
from minigpt_jax.corpora.base import SPLITS, Split, holdings, read_lines, readable
from minigpt_jax.errors import UserError

CONFIGURATIONS: tuple[str, ...] = get_args(get_type_hints(DataConfig)["simplebooks"])


class SimpleBooks:
    """One of the archive's configurations, as a `Corpus`. Every line that is not blank is a document.

    Args:
        archive: the zip file, of whose bytes the fingerprint is computed.
        configuration: one of `CONFIGURATIONS`.
        unpacked: a folder into which the archive was unpacked; if given, the text is read from there.
        source: the name of the archive in errors.

    Raises:
        UserError: the archive is missing, truncated, not a zip file or not SimpleBooks, or its validation or test split
            cannot be read. The training split, which is a hundred times longer, is checked when it is first read.
    """

    def __init__(self, archive: Path, configuration: str, unpacked: Path | None = None, source: str | None = None):
        self._archive = archive
        self._unpacked = unpacked
        self._source = source or f"--data.archive {archive}"
        with open_zip(archive, self._source) as file:
            self._members = _members(file, configuration, self._source)
        with readable(self._source):
            self.fingerprint = hashlib.sha256(f"{configuration} {files.sha256(archive)}".encode()).hexdigest()
        for split in SPLITS:
            documents = self.documents(split)
            if next(documents, None) is None:
                raise UserError(
                    f"{self._source}: {self._members[split].filename} holds no text; download the archive again"
                )
            if split != "train":
                for _ in documents:
                    pass

    def documents(self, split: Split) -> Iterator[str]:
        member = self._members[split]
        source = f"{self._source}: {member.filename}"
        with readable(source):
            if self._unpacked is None:
                with zipfile.ZipFile(self._archive) as file, cast(io.BufferedIOBase, file.open(member)) as stream:
                    yield from (line for _, line in read_lines(stream, source))
            else:
                with _CheckedFile(self._unpacked / member.filename, member.CRC) as stream:
                    yield from (line for _, line in read_lines(stream, source))

    def floor(self, split: Split) -> float | None:
        return None


def open_zip(path: Path, source: str) -> zipfile.ZipFile:
    """Opens a zip file for reading. `source` names it in errors.

    Raises:
        UserError: it is missing, a folder, not a zip file, or truncated (the directory of a zip file is at its end).
    """
    if not path.exists():
        raise UserError(f"{source}: no such file; give the path of a .zip archive")
    if not path.is_file():
        raise UserError(f"{source} is not a file; give the .zip archive itself")
    with readable(source):
        try:
            return zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{source} is not a zip file, or is truncated ({path.stat().st_size:,} bytes); download it again"
            ) from error


def _members(file: zipfile.ZipFile, configuration: str, source: str) -> dict[Split, zipfile.ZipInfo]:
    """The members of the archive that hold the three splits of a configuration.

    Raises:
        UserError: one of them is missing or encrypted.
    """
    names: dict[Split, str] = {split: f"simplebooks/{configuration}/{split}.txt" for split in SPLITS}
    there = [info.filename for info in file.infolist() if not info.is_dir()]
    missing = [name for name in names.values() if name not in there]
    if missing:
        complete = [c for c in CONFIGURATIONS if all(f"simplebooks/{c}/{split}.txt" in there for split in SPLITS)]
        if complete:
            advice = f"it holds {', '.join(complete)}; choose one of them with --data.simplebooks"
        else:
            advice = f"it holds {holdings(there)}; give the SimpleBooks archive"
        raise UserError(f"{source} does not contain {', '.join(missing)}; {advice}")
    members: dict[Split, zipfile.ZipInfo] = {split: file.getinfo(name) for split, name in names.items()}
    for info in members.values():
        if info.flag_bits & 1:
            raise UserError(f"{source}: {info.filename} is encrypted; give an archive without a password")
    return members


class _CheckedFile(io.RawIOBase):
    """A file whose CRC-32 is compared, once it is read to the end, with the one recorded in the archive."""

    def __init__(self, path: Path, crc: int):
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._expected = crc
        self._crc = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer) or 0
        self._crc = zlib.crc32(memoryview(buffer)[:count], self._crc)
        if count == 0 and self._crc != self._expected:
            raise UserError(f"{self._path} has changed since it was unpacked; delete it, and it is unpacked again")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
