"""Files elsewhere, at addresses that `fsspec` knows: hf://, s3://, gs://, https:// and others.

They are streamed at each pass over the corpus and never stored. Credentials come from the environment, as each service
has them: `HF_TOKEN`, `AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `~/.netrc` for https://, or the
configuration of fsspec (`FSSPEC_S3_ANON=true` for one).
"""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec.config
import fsspec.core

from minigpt_jax.corpora.base import holdings
from minigpt_jax.corpora.files import ALLOWED, Source, is_supported
from minigpt_jax.errors import UserError, without_password

_OF_THE_EXTRA = ("http", "https", "s3", "s3a", "gs", "gcs")
_CONTENTS = ("etag", "content-md5", "digest", "md5", "md5hash", "crc32c", "checksum", "blob_id", "oid", "versionid")
"""What services tell about a file that changes with its contents. The time of its last change is too coarse."""
_BUFFER = 1 << 20
_LOGGERS = ("gcsfs", "google.auth", "s3fs")
"""Loggers that print tracebacks of errors which are reported here in a line."""
_LONGEST_REASON = 200


def find(address: str, flag: str) -> list[Source]:
    """The files that an address stands for, in the order of their paths.

    Args:
        address: that of a file, a glob or a folder.
        flag: the flag by which the user gave it, for errors.

    Raises:
        UserError: there is no file that can be read, or a package is not installed.
    """
    label = f"{flag} {address}"
    system, path = _file_system(address, label)
    with _reported(label):
        system.invalidate_cache()  # a listing from earlier in this process may be out of date
        found, named = _listing(system, path)
        details = {place: about for place, about in found.items() if about["type"] == "file"}
        supported = [place for place in details if is_supported(_name(place))]
        supported.sort(key=lambda place: place.split("/"))  # as paths on disk are sorted
        if not supported and named:
            raise UserError(f"{label} is not of a supported kind; give {ALLOWED}")
        if not supported:
            raise UserError(f"{label} has no file of a supported kind ({ALLOWED}), only {holdings(_names(details))}")
        sources = []
        for place in supported:
            version = _version(details[place]) or _version(system.info(place))
            full = system.unstrip_protocol(place)
            sources.append(Source(full, _name(place), _opener(system, place, f"{flag} {full}"), version, named))
        return sources


def _file_system(address: str, label: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    protocol = address.partition("://")[0]
    if "::" in address or protocol not in fsspec.available_protocols():
        raise UserError(f"{label}: {protocol}:// is unknown; give an address such as hf://, s3://, gs:// or https://")
    settings = {}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # A stream may last for hours, but not be silent. ~/.netrc and the proxies of the environment count.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
            given = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            settings["client_kwargs"] = {"timeout": timeout, "trust_env": True, **given}
        with _reported(label):
            return fsspec.core.url_to_fs(address, **settings)
    except ImportError as error:
        mend = "pip install 'minigpt_jax[remote]'" if protocol in _OF_THE_EXTRA else _reason(error)
        raise UserError(f"{label}: a package that reads {protocol}:// is not installed; {mend}") from error


def _listing(system: Any, path: str) -> tuple[dict[str, Mapping[str, Any]], bool]:
    """What fsspec tells about each file at a path, and whether the path is that of one file."""
    marks = "*[" if "http" in system.protocol else "*[?"  # a question mark begins the query of a URL
    pattern = next((i for i, character in enumerate(path) if character in marks), None)
    if pattern is not None and not system.exists(path):
        found, fixed = system.glob(path, detail=True), path[:pattern]
    elif (about := system.info(path))["type"] == "file" and (is_supported(_name(path)) or not system.isdir(path)):
        return {path: about}, True
    else:
        found, fixed = system.find(path, detail=True), path
    visible = (place for place in found if not any(part.startswith(".") for part in place[len(fixed) :].split("/")))
    return {place: found[place] for place in visible}, False


def _names(places: Mapping[str, Any]) -> list[str]:
    return sorted(map(_name, places))


def _name(place: str) -> str:
    """The name of a file, without its folders and the query of its URL."""
    if place.startswith(("http://", "https://")):
        place = unquote(urlsplit(place).path)
    return place.rpartition("/")[2]


def _version(about: Mapping[str, Any]) -> str | None:
    """What tells two versions of a file apart, as its service tells it, or None if it tells nothing that suffices."""
    known = {name.lower(): str(value) for name, value in about.items() if name.lower() in _CONTENTS and value}
    if known.get("etag", "").startswith("W/"):  # a weak one: it may stay the same when bytes change
        del known["etag"]
    return json.dumps({"size": about.get("size"), **known}, sort_keys=True) if known else None


def _opener(system: Any, place: str, label: str) -> Callable[[bool], io.BufferedIOBase]:
    def open_bytes(seeks: bool) -> io.BufferedIOBase:
        # Over HTTP one request streams the whole file. A file that seeks is requested in parts.
        settings = {"block_size": 0} if "http" in system.protocol and not seeks else {}
        with _reported(label):
            file = _RemoteFile(system.open(place, "rb", **settings), label)
        if seeks:
            try:
                file.seek(0, io.SEEK_END)
                file.seek(0)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{label}: its server cannot send parts of files, which is needed here; download the file"
                ) from error
        return io.BufferedReader(file, _BUFFER)

    return open_bytes


class _RemoteFile(io.RawIOBase):
    """A file of fsspec's, whose errors of any kind become a UserError."""

    def __init__(self, file: Any, label: str) -> None:
        self._file = file
        self._label = label

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer: Any) -> int:
        with _reported(self._label):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def _reported(label: str) -> Iterator[None]:
    """Turns what goes wrong between here and the file's service, for which each has classes of its own, into a line."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        raise UserError(
            f"{label} cannot be read: {_reason(error)}; check the address, the network, and the credentials in the "
            "environment"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        if not isinstance(error.__cause__, Exception) or isinstance(error.__cause__, FileNotFoundError):
            return "there is no such file or folder"
        error = error.__cause__  # a URL that cannot be reached
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_password(lines[0][:_LONGEST_REASON])
