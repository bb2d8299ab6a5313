"""WordPiece (Schuster and Nakajima 2012), with the same ids as KerasHub's `WordPieceTokenizer`.

Hugging Face `tokenizers` trains the vocabulary and splits words into pieces; `characters` splits text into words. The
strings between spaces repeat often, so the ids of each are cached. On one thread this is faster than passing whole
texts to `tokenizers` on two.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Token, Tokenizer, models, pre_tokenizers, trainers

from minigpt_jax.config import BOS_ID, PAD_ID, RESERVED_PIECES, UNK_ID
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.characters import fold, split, word_of
from minigpt_jax.tokenizer.description import of_wordpiece, to_json
from minigpt_jax.tokenizer.settings import write_description, write_settings
from minigpt_jax.tokenizer.spacing import tidy_join
from minigpt_jax.tokenizer.special import OWN

VOCABULARY_FILE = "vocabulary.txt"

_CONTINUES = "##"  # the prefix of a piece that continues a word
_MAX_WORD_BYTES = 100  # a longer word becomes one [UNK], as in TensorFlow Text
_CACHED = 1 << 18  # the most strings in a cache, which then takes tens of megabytes


class WordPiece:
    """Splits words into pieces, greedily by the longest match. Spacing is lost, and also case if `lowercase`.

    Args:
        vocabulary: the pieces in the order of their ids. The reserved pieces come first.
        lowercase: whether to fold case, by Unicode's NFKC_Casefold.

    Raises:
        UserError: the vocabulary does not begin with the reserved pieces, or has an empty or repeated piece.

    >>> tokenizer = WordPiece(["[PAD]", "[UNK]", "[BOS]", "the", "king", "##s", "."])
    >>> tokenizer.encode_batch(["The kings.", "the queen"])
    [[3, 4, 5, 6], [3, 1]]
    >>> tokenizer.decode([3, 4, 5, 6])
    'the kings.'
    """

    special = OWN

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = True):
        self._pieces = tuple(vocabulary)
        self.lowercase = lowercase
        _check(self._pieces)
        self._model = models.WordPiece(
            {piece: i for i, piece in enumerate(self._pieces)},
            unk_token=RESERVED_PIECES[UNK_ID],
            continuing_subword_prefix=_CONTINUES,
            max_input_chars_per_word=_MAX_WORD_BYTES,
        )
        self._shown = {
            token: (piece.startswith(_CONTINUES) and piece != _CONTINUES, _shown(piece))
            for token, piece in enumerate(self._pieces)
            if token not in (PAD_ID, BOS_ID)
        }
        """Of each piece with text: whether it continues a word, and its text."""
        self._chunks = _Cached(self._cut)
        self._ids = _Cached(self._part_ids)
        self._ends = _Cached(self._part_ends)

    def __reduce__(self):
        # A process that receives the tokenizer with every chunk of text unpickles it once, and so keeps its caches.
        return _unpickled, (self._pieces, self.lowercase)

    def __len__(self) -> int:
        return len(self._pieces)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the pieces and settings. (Changes of Python's Unicode tables are too rare to be included.)"""
        behaviour = json.dumps(["wordpiece", self.lowercase, self._pieces])
        return hashlib.sha256(behaviour.encode()).hexdigest()

    def piece(self, token: int) -> str | None:
        """The piece of an id, or None if the vocabulary has no piece with this id."""
        return self._pieces[token] if 0 <= token < len(self) else None

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, without special tokens other than [UNK]."""
        return [list(chain.from_iterable(map(self._ids.__getitem__, text.split(" ")))) for text in texts]

    def encode_batch_with_ends(self, texts: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of each text (int32), and the number of UTF-8 bytes of text up to the end of each token (int64).

        Blanks belong to the token after them, and those after the last token to none. If folding changes the length of
        a word, the ends of its tokens are scaled in proportion.
        """
        return [self._encode_with_ends(text) for text in texts]

    def decode(self, ids: Iterable[int], tidy: bool = True) -> str:
        """The text of the ids. [PAD], [BOS] and ids without a piece are skipped.

        With `tidy`, spaces around punctuation are guessed. Without it, words are joined by single spaces, which
        restores text exactly if it is folded and has a space between all words.
        """
        words: list[str] = []
        for token in ids:
            if (piece := self._shown.get(int(token))) is None:
                continue
            continues, text = piece
            if continues and words:  # else the text begins inside a word
                words[-1] += text
            else:
                words.append(text)
        return tidy_join(words) if tidy else " ".join(words)

    def save(self, folder: str | Path) -> None:
        """Saves the tokenizer into the folder, from which `load` reads it. The folder is created if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, VOCABULARY_FILE).write_text("\n".join(self._pieces) + "\n", encoding="utf-8", newline="\n")
        write_description(folder, to_json(of_wordpiece(self._pieces, self.lowercase)))
        write_settings(folder, kind="wordpiece", lowercase=self.lowercase, fingerprint=self.fingerprint)

    def _tokens(self, chunk: str) -> list[Token]:
        word = _word(chunk, self.lowercase)
        if len(word.encode()) > _MAX_WORD_BYTES:
            return [Token(UNK_ID, RESERVED_PIECES[UNK_ID], (0, len(word.encode())))]
        return self._model.tokenize(word)

    def _cut(self, chunk: str) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        """The ids of a chunk's word, the bytes of the chunk, and the bytes of the chunk up to the end of each token."""
        size, word, tokens = len(chunk.encode()), word_of(chunk), self._tokens(chunk)
        word_size = len(word.encode())
        folded_size = len(_word(chunk, self.lowercase).encode())
        ends = (size - word_size + token.offsets[1] * word_size // folded_size for token in tokens)
        return tuple(token.id for token in tokens), size, tuple(ends)

    def _part_ids(self, part: str) -> tuple[int, ...]:
        """The ids of a string between two spaces."""
        return tuple(token for chunk in split(part) for token in self._chunks[chunk][0])

    def _part_ends(self, part: str) -> tuple[int, tuple[int, ...]]:
        """The bytes of a string between two spaces, and the bytes of it up to the end of each token."""
        start, ends = 0, []
        for chunk in split(part):
            _, size, chunk_ends = self._chunks[chunk]
            ends += [start + end for end in chunk_ends]
            start += size
        return start, tuple(ends)

    def _encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        parts = text.split(" ")
        ids = np.fromiter(chain.from_iterable(map(self._ids.__getitem__, parts)), np.int32)
        sizes, ends = zip(*map(self._ends.__getitem__, parts), strict=True)
        starts = np.cumsum((0, *sizes[:-1]), dtype=np.int64) + np.arange(len(parts))  # a space before all but the first
        tokens_in_part = np.fromiter(map(len, ends), np.int64, len(ends))
        return ids, starts.repeat(tokens_in_part) + np.fromiter(chain.from_iterable(ends), np.int64, len(ids))


class _Cached(dict[str, Any]):
    """A cache of a function's results for strings. It is cleared when it gets too large."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function

    def __missing__(self, text: str) -> Any:
        if len(self) >= _CACHED:
            self.clear()
        self[text] = found = self._function(text)
        return found


@functools.lru_cache(4)
def _unpickled(pieces: tuple[str, ...], lowercase: bool) -> WordPiece:
    return WordPiece(pieces, lowercase)


def train(texts: Iterable[str], vocabulary_size: int, lowercase: bool, exact: bool = True) -> WordPiece:
    """Trains `vocabulary_size` pieces on the texts, which are read once and not kept in memory.

    The same words give the same vocabulary, in any order and in any process. For this, all characters are given to
    Hugging Face's trainer as special tokens, in a fixed order: it would number the "##" characters in the random order
    of a hash map, and it breaks ties between merges by these numbers.

    Raises:
        UserError: the text has too many characters, or, if `exact`, too few words for this number of pieces.
    """
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(split(text))
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        word = _word(chunk, lowercase)
        if word and len(word.encode()) <= _MAX_WORD_BYTES:
            counts[word] += count
    if not counts:
        raise UserError("the training text of the tokenizer contains no word; check --data.corpus and --data.files")

    first = sorted({char for word in counts for char in word})
    later = sorted({char for word in counts for char in word[1:]})
    named = [*RESERVED_PIECES, *first, *(_CONTINUES + char for char in later)]
    if vocabulary_size < len(named):
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too small for the {len(first)} characters of the "
            f"training text, which are pieces at the start of a word and inside it; give at least {len(named)}"
        )

    tokenizer = Tokenizer(models.WordPiece(unk_token=RESERVED_PIECES[UNK_ID]))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(_repeated(counts), trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    if exact and len(ids) < vocabulary_size:
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too large for the training text, which gives "
            f"{len(ids)} pieces; add --tokenizer.no-exact, or give at most {len(ids)}"
        )
    return WordPiece(sorted(ids, key=ids.__getitem__), lowercase)


def read_vocabulary(path: Path) -> list[str]:
    """The pieces of a vocabulary file, one per line. Callers have to handle OSError and UnicodeDecodeError."""
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _shown(piece: str) -> str:
    """A piece's text."""
    return piece.removeprefix(_CONTINUES) if piece != _CONTINUES else piece


def _word(chunk: str, lowercase: bool) -> str:
    return fold(word_of(chunk)) if lowercase else word_of(chunk)


def _repeated(counts: Counter[str]) -> Iterator[str]:
    """Yields texts in which each word is repeated as often as it occurs, as the trainer does not take counts."""
    for word, count in counts.items():
        for start in range(0, count, 1000):
            yield f"{word}\n" * min(count - start, 1000)


def _check(pieces: Sequence[str]) -> None:
    for token, reserved in enumerate(RESERVED_PIECES):
        found = repr(pieces[token]) if token < len(pieces) else "nothing"
        if found != repr(reserved):
            raise UserError(
                f"piece {token} of a WordPiece vocabulary must be {reserved}, but it is {found}; "
                f"begin the vocabulary with {', '.join(RESERVED_PIECES)}"
            )
    first_at: dict[str, int] = {}
    for token, piece in enumerate(pieces):
        if not piece:
            raise UserError(f"piece {token} of the WordPiece vocabulary is empty; remove the blank line")
        if first_at.setdefault(piece, token) != token:
            raise UserError(
                f"pieces {first_at[piece]} and {token} of the WordPiece vocabulary are both {piece!r}; keep one"
            )
