"""Downloads the SimpleBooks archive, checks it, and unpacks it into the cache, by TensorFlow Datasets' manager.

The functions here add what the manager lacks:

- Without a network it tries for over three minutes. Here the address is probed first.
- It checks only a SHA-256, and none has been published for this archive. Here the size and the zip directory are
  checked, and the SHA-256 of the first download is recorded and compared from then on.
- It silently skips members whose path leaves the folder. Here an archive with such members is refused.
- It leaves the files of an interrupted download behind. Here they are removed.
"""

import contextlib
import http.client
import json
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from minigpt_jax import files
from minigpt_jax.cache import lock
from minigpt_jax.corpora.base import holdings
from minigpt_jax.corpora.simplebooks import open_zip
from minigpt_jax.errors import UserError

URL = "https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip"
SIZE = 282_386_239
PROBE_SECONDS = 10
RECORD = "archive.json"
WAYS_OUT = (
    "give the archive with --data.archive FILE.zip, or use --data.corpus stories, "
    "or --data.corpus text --data.files FILE …"
)
_OTHER_CACHE = "free some space, or set MINIGPT_CACHE to another folder"


class Download(NamedTuple):
    """A checked archive on disk, and the folder into which it was unpacked."""

    archive: Path
    unpacked: Path


def download(cache: Path, url: str = URL, size: int = SIZE) -> Download:
    """Returns the archive in `cache`. It is downloaded only if it is missing or damaged.

    Processes that start together wait for the first one. TensorFlow is imported only to download or unpack.

    Raises:
        UserError: the archive cannot be downloaded or is not the expected one, or the cache cannot be written.
    """
    folder = cache / "simplebooks"
    with _usable(folder):
        archive = _recorded_archive(folder, url)
        if archive and _is_unpacked(archive, _unpacked(folder, archive)):
            return Download(archive, _unpacked(folder, archive))
        with lock(folder):
            folder.mkdir(parents=True, exist_ok=True)
            archive = _recorded_archive(folder, url)
            if archive is None:
                archive = _download(folder, url, size)
            elif not _is_unpacked(archive, _unpacked(folder, archive)):
                _unpack(folder, archive)
        return Download(archive, _unpacked(folder, archive))


def _download(folder: Path, url: str, size: int) -> Path:
    """Downloads and unpacks the archive. Its SHA-256 is recorded last, so a record implies a checked archive."""
    _probe(url, size)
    _require_space(folder, 4 * size)  # the text is about three times as large as the zip file
    import tensorflow_datasets as tfds

    # Files without a valid record were left by an interrupted or damaged download.
    downloads = folder / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    try:
        try:
            archive = Path(tfds.download.DownloadManager(download_dir=downloads).download(url))
        except (OSError, tfds.download.DownloadError) as error:
            raise UserError(f"the download of {url} failed: {_reason(error)}; try again, or {WAYS_OUT}") from error
        _check(archive, url, size)
        record = {"url": url, "archive": archive.relative_to(folder).as_posix(), "sha256": files.sha256(archive)}
        before = _record(folder)
        if before.get("url") == url and before["sha256"] != record["sha256"]:
            raise UserError(
                f"{url} is not the archive that was downloaded before (SHA-256 {record['sha256'][:12]}… instead of "
                f"{before['sha256'][:12]}…); to accept the new one, delete {folder / RECORD} and try again"
            )
        _unpack(folder, archive)
    except BaseException:
        shutil.rmtree(downloads, ignore_errors=True)
        raise
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, folder / RECORD)
    return archive


def _probe(url: str, size: int) -> None:
    """Requests the headers of the archive, to fail within seconds. The manager would try for minutes.

    Raises:
        UserError: the server cannot be reached, refuses the request, or announces another size.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS) as reply:
            announced = reply.headers.get("Content-Length")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"SimpleBooks cannot be downloaded from {url} ({_reason(error)}); {WAYS_OUT}") from error
    if announced is not None and int(announced) != size:
        raise UserError(f"{url} offers {int(announced):,} bytes, but SimpleBooks has {size:,}; {WAYS_OUT}")


def _check(archive: Path, url: str, size: int) -> None:
    """Checks the size and the zip directory of a downloaded archive, and that no member would leave the folder.

    Raises:
        UserError: one of the checks fails.
    """
    if (got := archive.stat().st_size) != size:
        raise UserError(f"{url} sent {got:,} bytes, but SimpleBooks has {size:,}; try again, or {WAYS_OUT}")
    with open_zip(archive, url) as file:
        unsafe = [name for name in file.namelist() if _leaves(name)]
    if unsafe:
        raise UserError(f"{url} is refused: {holdings(unsafe)} would be unpacked outside its folder; {WAYS_OUT}")


def _unpack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        _require_space(folder, sum(info.file_size for info in file.infolist()))
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.extractor import ExtractError

    unpacked = _unpacked(folder, archive)
    shutil.rmtree(unpacked.parent, ignore_errors=True)
    manager = tfds.download.DownloadManager(download_dir=archive.parent, extract_dir=unpacked.parent)
    try:
        manager.extract(tfds.download.Resource(path=archive, extract_method=tfds.download.ExtractMethod.ZIP))
    except ExtractError as error:
        shutil.rmtree(unpacked.parent, ignore_errors=True)
        reason = error.__cause__ or error
        raise UserError(f"{archive} cannot be unpacked: {reason}; try again, or {WAYS_OUT}") from error


def _recorded_archive(folder: Path, url: str) -> Path | None:
    """The archive downloaded before, if its bytes are still those recorded then."""
    record = _record(folder)
    if record.get("url") != url:
        return None
    archive = folder / record["archive"]
    return archive if archive.is_file() and files.sha256(archive) == record["sha256"] else None


def _record(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _unpacked(folder: Path, archive: Path) -> Path:
    return folder / "unpacked" / f"ZIP.{archive.name}"  # the manager's name for it


def _is_unpacked(archive: Path, unpacked: Path) -> bool:
    """Whether the folder has every text file of the archive at its full length. CRCs are checked when it is read."""
    with zipfile.ZipFile(archive) as file:
        texts = [info for info in file.infolist() if PurePosixPath(info.filename).match("simplebooks/*/*.txt")]
    paths = [unpacked / info.filename for info in texts]
    return all(p.is_file() and p.stat().st_size == info.file_size for p, info in zip(paths, texts, strict=True))


def _require_space(folder: Path, need: int) -> None:
    if (free := shutil.disk_usage(folder).free) < need:
        raise UserError(f"{folder} has {free:,} bytes free, but SimpleBooks needs {need:,}; {_OTHER_CACHE}")


def _leaves(name: str) -> bool:
    """Whether the path of a member is absolute or leads out of the folder, on any operating system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (bool(path.parts) and ":" in path.parts[0])


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be used: {_reason(error)}; set MINIGPT_CACHE to another folder"
        ) from error


def _reason(error: Exception) -> str:
    """The innermost reason of an error, on one line. urllib wraps it once, requests and urllib3 several times."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args and error.args[0]), Exception):
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
