"""A tokenizer that Hugging Face `tokenizers` runs, described by a tokenizer.json: of the user's own, or made here.

The kinds `byte_bpe`, `char` and `byte` are such descriptions too (`lossless`), so all of them share this class.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.settings import write_description, write_settings
from minigpt_jax.tokenizer.special import SpecialIds
from minigpt_jax.tokenizer.unicode import without_surrogates

_ADDED = "[BOS]"  # the name of a start token that the description lacks
_PROBE = "a \u2581\U0010fffd\n"


class HuggingFace:
    """The pieces, normaliser and decoder of a tokenizer.json, with the ids that `tokenizers` gives.

    Truncation and padding in the description have no effect, nor have the special tokens that it puts around a text.

    Args:
        description: the contents of the tokenizer.json.
        special: the ids of its special tokens. A start that is one past its vocabulary is a piece that it lacks.
        reserved_words: whether special tokens that are spelled out in a text are read as such.

    Raises:
        UserError: the description is not one that `tokenizers` can read, or it has no vocabulary.
    """

    def __init__(self, description: str, special: SpecialIds, reserved_words: bool = True):
        self.special = special
        self._description, self._reserved_words = description, reserved_words
        self._tokenizer = read(description)
        self._tokenizer.encode_special_tokens = not reserved_words
        self._pieces = pieces(self._tokenizer)
        self._skipped = frozenset(special.banned)
        decoder = json.loads(description).get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        self._continues = next((step["prefix"] for step in steps if step.get("type") == "WordPiece"), "")
        """The prefix of pieces that continue a word. The library's decoder leaves that of the first piece."""

    def __reduce__(self):
        # A process that receives the tokenizer with every chunk of text reads the description once.
        return _unpickled, (self._description, self.special, self._reserved_words)

    def __len__(self) -> int:
        return max(len(self._pieces), self.special.start + 1)

    @property
    def description(self) -> str:
        """The contents of the tokenizer.json."""
        return self._description

    @property
    def adds_start(self) -> bool:
        """Whether the start token is none of the description."""
        return self.special.start >= len(self._pieces)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the description and the special ids."""
        behaviour = json.dumps(["huggingface", self._description, self.special.to_json(), self._reserved_words])
        return hashlib.sha256(behaviour.encode()).hexdigest()

    def piece(self, token: int) -> str | None:
        """The piece of an id, or None if the vocabulary has no piece with this id."""
        if 0 <= token < len(self._pieces):
            return self._pieces[token]
        return _ADDED if token == self.special.start else None

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text. Special tokens are among them only if the text spells them out."""
        return [encoding.ids for encoding in self._encode(list(texts))]

    def encode_batch_with_ends(self, texts: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of each text (int32), and the number of UTF-8 bytes of text up to the end of each token (int64).

        Where pieces have lost or changed characters, the ends are those of the characters that a piece was made of.
        """
        texts = list(map(without_surrogates, texts))
        rows = [np.array(encoding.ids, np.int32) for encoding in self._encode(texts)]
        ends = [self._exact_ends(text, row) for text, row in zip(texts, rows, strict=True)]
        unknown = [text for text, known in zip(texts, ends, strict=True) if known is None]
        traced = iter(self._tokenizer.encode_batch(unknown, add_special_tokens=False) if unknown else [])
        return [
            (row, _byte_ends(text, next(traced)) if known is None else known)
            for text, row, known in zip(texts, rows, ends, strict=True)
        ]

    def decode(self, ids: Iterable[int], tidy: bool = True) -> str:
        """The text of the ids. Special tokens and ids without a piece are skipped.

        Invalid sequences of bytes become U+FFFD. `tidy` has no effect, as the description says how pieces are joined.
        """
        kept = [i for i in map(int, ids) if 0 <= i < len(self._pieces) and i not in self._skipped]
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        continues = bool(kept and self._continues) and self._pieces[kept[0]] != self._continues
        return text.removeprefix(self._continues) if continues else text

    def save(self, folder: str | Path) -> None:
        """Saves the tokenizer into the folder, from which `load` reads it. The folder is created if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_description(folder, self._description)
        write_settings(
            folder,
            kind="huggingface",
            special=self.special.to_json(),
            reserved_words=self._reserved_words,
            fingerprint=self.fingerprint,
        )

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The encodings of the texts, without offsets."""
        return self._tokenizer.encode_batch_fast(list(map(without_surrogates, texts)), add_special_tokens=False)

    def _exact_ends(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        """The ends of the tokens by the bytes that their pieces hold, or None if these are not those of the text."""
        if self._piece_bytes is None:
            return None
        ends = self._piece_bytes[ids].cumsum()
        return ends if ends.max(initial=0) == len(text.encode()) else None

    @functools.cached_property
    def _piece_bytes(self) -> np.ndarray | None:
        """The number of bytes of text that each piece holds, if the decoder joins pieces without changes.

        An unknown character has an unknown number of bytes, which counts as none.
        """
        description = json.loads(self._description)
        decoder, model = description.get("decoder") or {}, description["model"]
        if decoder.get("type") not in ("ByteLevel", "Fuse"):
            return None
        of_bytes = decoder["type"] == "ByteLevel"
        added = self._tokenizer.get_added_tokens_decoder()
        sizes = [
            len(piece) if of_bytes and token not in added else len(piece.encode())
            for token, piece in enumerate(piece or "" for piece in self._pieces)
        ]
        unknown = model.get("unk_token")
        if unknown in self._pieces:
            sizes[self._pieces.index(unknown)] = 0
        return np.array(sizes, np.int64)


@functools.lru_cache(4)
def _unpickled(description: str, special: SpecialIds, reserved_words: bool) -> HuggingFace:
    return HuggingFace(description, special, reserved_words)


def read(description: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json's contents.

    Raises:
        UserError: it is not JSON, has no vocabulary, or `tokenizers` cannot read it or encode every text with it.
    """
    try:
        model = json.loads(description)["model"]
        vocabulary = model["vocab"]
    except ValueError as error:
        raise UserError(f"not JSON ({error}); give a tokenizer.json of Hugging Face's tokenizers") from error
    except (KeyError, TypeError):
        vocabulary = None
    if not vocabulary or not isinstance(vocabulary, dict | list):
        raise UserError("it has no vocabulary (model.vocab); give a tokenizer.json of Hugging Face's tokenizers")
    try:
        tokenizer = Tokenizer.from_str(description)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode(_PROBE, add_special_tokens=False)
    except Exception as error:  # `tokenizers` raises nothing more special
        raise UserError(f"it cannot be used by tokenizers ({error}); give a tokenizer.json that it can read") from error
    return tokenizer


def pieces(tokenizer: Tokenizer) -> list[str | None]:
    """The piece of each id, or None for an id that the vocabulary leaves out."""
    vocabulary = tokenizer.get_vocab()
    found: list[str | None] = [None] * (max(vocabulary.values()) + 1)
    for piece, token in vocabulary.items():
        found[token] = piece
    return found


def _byte_ends(text: str, encoding: Encoding) -> np.ndarray:
    """The bytes of text up to the end of each token, from the characters that `tokenizers` traced the tokens to."""
    chars = np.array([end for _, end in encoding.offsets], np.int64)
    if not text.isascii():
        sizes: Any = np.fromiter((len(char.encode()) for char in text), np.int64, len(text))
        chars = np.append(0, sizes.cumsum())[chars]
    return np.maximum.accumulate(chars) if len(chars) else chars
