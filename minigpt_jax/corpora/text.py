"""A corpus of any text: files, globs and folders, on disk or elsewhere.

Opening the corpus reads all files once, with 12 bytes of memory per document. This finds every error, computes the
fingerprint of the contents, and determines the splits. What it finds about files elsewhere is kept in the cache as long
as their services tell that the files are the same.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from minigpt_jax.corpora import files as corpus_files
from minigpt_jax.corpora.base import Split, holdings
from minigpt_jax.corpora.readers import Reader
from minigpt_jax.corpora.scan import Scan, Scanner, kept, key_of
from minigpt_jax.errors import UserError


class Text:
    """The user's own files, as a `Corpus`.

    The split of a document depends only on a hash of its text, so that equal documents are always in the same split.
    Two quantiles of the hashes divide the documents: validation and test each get the fraction `held_out` of the
    distinct documents, and at least one.

    Args:
        files: files, globs and folders, which are searched recursively, and addresses of such. They are read in this
            order, and the files of each in the order of their paths.
        document: whether a line or a file (or member of a zip file) is a document. A record of a .jsonl file and a row
            of a .parquet file always are one.
        text_field: the field of a record, or the column of a .parquet file, that holds the text.
        held_out: the fraction of documents for each of validation and test, above 0 and below 0.5.
        separator: if given, documents end where it stands, and may have many lines (see `Reader`).
        cache: the folder in which the results of reading remote files are kept; None to keep none.

    Raises:
        UserError: a file is missing, of another kind, empty, damaged or not UTF-8, a record is not JSON or does not
            have the field, the separator never occurs, or there are fewer than three distinct documents.
    """

    def __init__(
        self,
        files: Sequence[str],
        document: Literal["line", "file"] = "line",
        text_field: str = "text",
        held_out: float = 0.02,
        separator: str | None = None,
        cache: Path | None = None,
    ):
        self._files = tuple(files)
        self._document = document
        self._reader = Reader(document, text_field, separator)
        self._sources = corpus_files.find(files, "--data.files")
        made = {"document": document, "text_field": text_field, "separator": separator, "held_out": held_out}
        versions = [[source.address, source.version] for source in self._sources]
        if cache is not None and all(version for _, version in versions):
            self._scan = kept(cache, {**made, "files": versions}, lambda: self._read_all(held_out))
        else:
            self._scan = self._read_all(held_out)
        self.fingerprint = hashlib.sha256(f"text {self._scan.held} {self._scan.digest}".encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        low, high = self._scan.bounds[split]
        total = hashlib.sha256()
        for source in self._sources:
            for text in self._reader.documents(source):
                digest, _ = _digest_and_size(text, source)
                total.update(digest)
                if low <= key_of(digest) < high:
                    yield text
        if total.hexdigest() != self._scan.digest:
            raise UserError(
                f"--data.files {holdings(list(self._files))}: a file has changed since this command began to read it; "
                "give the command again"
            )

    def document_bytes(self, split: Split) -> np.ndarray:
        """The UTF-8 bytes of each document of a split, known since the corpus was opened [number of documents]."""
        return self._scan.sizes[split]

    def floor(self, split: Split) -> float | None:
        return None

    def _read_all(self, held_out: float) -> Scan:
        scanner = Scanner()
        for source in self._sources:
            before = len(scanner)
            for text in self._reader.documents(source):
                scanner.add(*_digest_and_size(text, source))
            if source.named and len(scanner) == before:
                raise UserError(f"--data.files {source.address} contains no text; omit it or give another file")
        given = f"--data.files {holdings(list(self._files))}"
        if self._reader.separator is not None and not self._reader.separators:
            raise UserError(
                f"--data.separator {self._reader.separator!r} never occurs in the plain text of {given}; check it, or "
                "leave it out to take each line as a document"
            )
        distinct = scanner.distinct()
        if (count := len(distinct)) < 3:
            advice = "give more text" + (", or use --data.document line" if self._document == "file" else "")
            raise UserError(
                f"{given}: {count or 'no'} distinct document{'' if count == 1 else 's'}, but training, validation and "
                f"test need one each; {advice}"
            )
        return scanner.finish(distinct, held_out)


def read_files(
    files: Sequence[str],
    document: Literal["line", "file"] = "line",
    text_field: str = "text",
    separator: str | None = None,
    *,
    flag: str = "--data.files",
) -> Iterator[str]:
    """Yields the documents of files, globs and folders as `Text` does, but without dividing them into splits.

    Args:
        files, document, text_field, separator: as in `Text`. The separator need not occur.
        flag: the flag by which the user gave the files, for errors.

    Raises:
        UserError: as in `Text`, while the files are read. There may be any number of documents.
    """
    reader = Reader(document, text_field, separator, flag)
    for source in corpus_files.find(files, flag):
        yield from reader.documents(source)


def _digest_and_size(text: str, source: corpus_files.Source) -> tuple[bytes, int]:
    """The SHA-256 digest of a document, and its UTF-8 bytes."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:  # possible only in an escape sequence of JSON
        raise UserError(
            f"--data.files {source.address}: a record has half a surrogate pair, {text[error.start]!r}, which is "
            "not a character; write the whole pair"
        ) from error
    return hashlib.sha256(encoded).digest(), len(encoded)
