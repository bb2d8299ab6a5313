"""A corpus of the user's own: any object that has the documents of each split."""

import hashlib
from collections.abc import Iterator

from minigpt_jax.config import DataConfig, code
from minigpt_jax.corpora.base import SPLITS, Split
from minigpt_jax.errors import UserError


class Custom:
    """A `Corpus` made of what code of the user's own returns, given the `DataConfig`.

    That needs `documents(split)` alone. Its `fingerprint` is asked for if it has one, else all documents are read once;
    the contents of its file are part of the result. `floor(split)` is optional too. Blank documents are left out.

    Raises:
        UserError: the code was not run, it makes no corpus, or a document is no string.
    """

    def __init__(self, config: DataConfig) -> None:
        self.name = config.corpus
        self._corpus = code.loaded(config.corpus)(config)
        if not callable(getattr(self._corpus, "documents", None)):
            raise UserError(
                f"--data.corpus {self.name}: it makes a {type(self._corpus).__name__} without a method documents(split)"
            )
        contents = getattr(self._corpus, "fingerprint", None) or self._sum()
        file = config.corpus.sha256 if isinstance(config.corpus, code.Code) else ""
        self.fingerprint = hashlib.sha256(f"{file} {contents}".encode()).hexdigest()

    def documents(self, split: Split) -> Iterator[str]:
        for text in self._corpus.documents(split):
            if not isinstance(text, str):
                raise UserError(
                    f"--data.corpus {self.name}: a document of the {split} split is a {type(text).__name__}; it must "
                    "be a string"
                )
            if text.strip():
                yield text

    def floor(self, split: Split) -> float | None:
        floor = getattr(self._corpus, "floor", None)
        return None if floor is None else floor(split)

    def _sum(self) -> str:
        """SHA-256 of all documents, in hex."""
        total = hashlib.sha256()
        for split in SPLITS:
            for text in self.documents(split):
                total.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
            total.update(split.encode())
        return total.hexdigest()
