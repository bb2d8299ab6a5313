"""Files on disk: their checksums."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
