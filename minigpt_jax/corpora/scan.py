"""What one pass over all documents finds: the digest of their contents, the bounds of the splits, and their sizes."""

import contextlib
import hashlib
import json
import zipfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_jax import cache as shared
from minigpt_jax.corpora.base import SPLITS, Split

_FORMAT = 1


@dataclass(frozen=True)
class Scan:
    """The result of a pass over all documents.

    Attributes:
        digest: the SHA-256, in hex, of the SHA-256 digests of all documents in their order.
        held: the number of distinct documents that validation and test each get.
        bounds: the range of the keys (see `key_of`) of each split's documents.
        sizes: the UTF-8 bytes of each document of a split, in their order [number of documents].
    """

    digest: str
    held: int
    bounds: dict[Split, tuple[int, int]]
    sizes: dict[Split, np.ndarray]

    def save(self, folder: Path, description: dict[str, Any]) -> None:
        """Writes the scan, and a description of what was scanned, into a folder."""
        np.savez(folder / "sizes.npz", **self.sizes)
        about = {"description": description, "digest": self.digest, "held": self.held, "bounds": self.bounds}
        (folder / "scan.json").write_text(json.dumps(about, indent=2))

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> "Scan | None":
        """The scan that was saved in a folder, or None if it is missing, damaged or of another description."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            about = json.loads((folder / "scan.json").read_text())
            if about["description"] != description:
                return None
            with np.load(folder / "sizes.npz") as saved:
                sizes: dict[Split, np.ndarray] = {split: saved[split] for split in SPLITS}
            bounds: dict[Split, tuple[int, int]] = {split: tuple(about["bounds"][split]) for split in SPLITS}
            return cls(about["digest"], about["held"], bounds, sizes)
        return None


class Scanner:
    """Collects what a `Scan` needs, document by document, in 12 bytes for each."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._keys, self._sizes = array("Q"), array("I")

    def __len__(self) -> int:
        """How many documents there were so far."""
        return len(self._keys)

    def add(self, digest: bytes, size: int) -> None:
        """Adds the next document, by its SHA-256 digest and its UTF-8 bytes."""
        self._total.update(digest)
        self._keys.append(key_of(digest))
        self._sizes.append(size)

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, of the digests of the documents so far."""
        return self._total.hexdigest()

    def distinct(self) -> np.ndarray:
        """The sorted keys of the documents, each once."""
        return np.unique(np.frombuffer(self._keys, np.uint64)) if self._keys else np.empty(0, np.uint64)

    def finish(self, distinct: np.ndarray, held_out: float) -> Scan:
        """The scan of all documents. There have to be three distinct ones.

        Args:
            distinct: what `distinct` gave.
            held_out: the fraction of them for each of validation and test.
        """
        count = len(distinct)
        held = min(max(round(held_out * count), 1), (count - 1) // 2)
        valid_end, test_end = int(distinct[held]), int(distinct[2 * held])
        bounds: dict[Split, tuple[int, int]] = {
            "valid": (0, valid_end),
            "test": (valid_end, test_end),
            "train": (test_end, 1 << 64),
        }
        keys, sizes = np.frombuffer(self._keys, np.uint64), np.frombuffer(self._sizes, np.uint32)
        places: Any = np.searchsorted(np.array([valid_end, test_end], np.uint64), keys, side="right")
        return Scan(
            self.digest,
            held,
            bounds,
            {split: sizes[places == place] for place, split in enumerate(("valid", "test", "train"))},
        )


def key_of(digest: bytes) -> int:
    """The key of a document, by which it is in a split: 64 bits of its SHA-256 digest."""
    return int.from_bytes(digest[:8], "big")


def kept(folder: Path, description: dict[str, Any], make: Callable[[], Scan]) -> Scan:
    """The scan in a folder of the cache, or, where there is none of this description, a new one, which is saved.

    Args:
        folder: the cache.
        description: what the scan depends on, as JSON has it.
        make: makes a new scan.
    """
    description = {"format": _FORMAT, **description}
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]
    place = folder / "scans" / key
    with shared.lock(place):
        scan = Scan.load(place, description)
        if scan is None:
            scan = make()
            with shared.atomic_folder(place) as partial:
                scan.save(partial, description)
    return scan
