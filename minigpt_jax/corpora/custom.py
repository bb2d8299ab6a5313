"""A corpus of the user's own: any object with a method that yields the documents of each split."""

import hashlib
from collections.abc import Iterator

from minigpt_jax.config import DataConfig, code
from minigpt_jax.corpora.base import SPLITS, Split
from minigpt_jax.errors import UserError


class Custom:
    """Wraps the object that the user's own code returns, given the `DataConfig`, as a `Corpus`.

    The object needs only a method `documents(split)`. Its `fingerprint` is used if it has one; otherwise all documents
    are read once to compute one. The contents of the code's file are part of the fingerprint in both cases.
    `floor(split)` is optional too. Blank documents are skipped.

    Raises:
        UserError: the code has not been run, it does not return a corpus, or a document is not a string.
    """

    def __init__(self, config: DataConfig) -> None:
        self.name = config.corpus
        self._corpus = code.loaded(config.corpus)(config)
        if not callable(getattr(self._corpus, "documents", None)):
            raise UserError(
                f"--data.corpus {self.name}: it returns a {type(self._corpus).__name__}, which has no method "
                "documents(split)"
            )
        contents = getattr(self._corpus, "fingerprint", None)
        contents = (contents() if callable(contents) else contents) or self._digest()
        file = config.corpus.sha256 if isinstance(config.corpus, code.Code) else ""
        self.fingerprint = hashlib.sha256(f"{file} {contents}".encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        for text in self._corpus.documents(split):
            if not isinstance(text, str):
                raise UserError(
                    f"--data.corpus {self.name}: a document of the {split} split is a {type(text).__name__}; it must "
                    "be a string"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"--data.corpus {self.name}: a document of the {split} split has half of a surrogate pair at "
                    f"character {error.start:,}, which is no text; decode it correctly, or replace that character"
                ) from error
            if text.strip():
                yield text

    def floor(self, split: Split) -> float | None:
        floor = getattr(self._corpus, "floor", None)
        return None if floor is None else floor(split)

    def _digest(self) -> str:
        """The SHA-256 of all documents, in hex."""
        total = hashlib.sha256()
        for split in SPLITS:
            for text in self.documents(split):
                total.update(hashlib.sha256(text.encode()).digest())
            total.update(split.encode())
        return total.hexdigest()
