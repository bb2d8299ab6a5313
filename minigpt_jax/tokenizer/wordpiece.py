"""WordPiece (Schuster and Nakajima 2012), with the ids that KerasHub's `WordPieceTokenizer` gives.

Hugging Face `tokenizers` trains the vocabulary and cuts words into pieces; `characters` cuts text into words. What
stands between two spaces is mostly one of few strings, so it is cut once and remembered: this is faster on one thread
than handing whole texts to `tokenizers` is on two.
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
from minigpt_jax.tokenizer.settings import write_settings
from minigpt_jax.tokenizer.spacing import tidy_join

VOCABULARY_FILE = "vocabulary.txt"

_CONTINUES = "##"  # begins a piece that goes on with the word before
_MAX_WORD_BYTES = 100  # a longer word is one [UNK], as in TensorFlow Text
_REMEMBERED = 1 << 18  # strings of a kind; tens of megabytes when full


class WordPiece:
    """Greedy longest-match-first pieces of words; case (if `lowercase`) and spacing are lost.

    Args:
        vocabulary: the pieces in the order of their ids, the reserved ones first.
        lowercase: fold case, as Unicode's NFKC_Casefold does.

    Raises:
        UserError: the vocabulary lacks the reserved pieces, or has an empty or repeated one.

    >>> tokenizer = WordPiece(["[PAD]", "[UNK]", "[BOS]", "the", "king", "##s", "."])
    >>> tokenizer.encode_batch(["The kings.", "the queen"])
    [[3, 4, 5, 6], [3, 1]]
    >>> tokenizer.decode([3, 4, 5, 6])
    'the kings.'
    """

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
        self._chunks = _Remembered(self._cut)
        self._ids = _Remembered(self._part_ids)
        self._ends = _Remembered(self._part_ends)

    def __reduce__(self):
        # A process that is sent it again and again, a chunk of text each time, keeps what it has remembered.
        return _unpickled, (self._pieces, self.lowercase)

    def __len__(self) -> int:
        return len(self._pieces)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pieces and settings. (Not of Python's Unicode tables: their yearly additions are rare.)"""
        behaviour = json.dumps(["wordpiece", self.lowercase, self._pieces])
        return hashlib.sha256(behaviour.encode()).hexdigest()

    def piece(self, token: int) -> str | None:
        """The piece of an id, or None where the model has a row but the vocabulary no piece."""
        return self._pieces[token] if 0 <= token < len(self) else None

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text, without reserved ones but [UNK]."""
        return [list(chain.from_iterable(map(self._ids.__getitem__, text.split(" ")))) for text in texts]

    def encode_batch_with_ends(self, texts: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids (int32) of each text, and the UTF-8 bytes (int64) of the text up to the end of each token.

        Blanks count towards the token after them; those after the last token towards none. Inside a word whose fold
        has another length, ends are in proportion.
        """
        return [self._encode_with_ends(text) for text in texts]

    def decode(self, ids: Iterable[int], tidy: bool = True) -> str:
        """Text of the ids; [PAD], [BOS] and ids without a piece are skipped.

        With `tidy`, spaces around punctuation are restored as far as they can be guessed; without, words are joined by
        single spaces, so that text which is written so (folded, every word apart) comes back exactly.
        """
        words: list[str] = []
        for token in ids:
            piece = self.piece(int(token))
            if piece is None or token in (PAD_ID, BOS_ID):
                continue
            if not piece.startswith(_CONTINUES) or piece == _CONTINUES:
                words.append(piece)
            elif words:
                words[-1] += piece.removeprefix(_CONTINUES)
            else:  # the text begins inside a word
                words.append(piece.removeprefix(_CONTINUES))
        return tidy_join(words) if tidy else " ".join(words)

    def save(self, folder: str | Path) -> None:
        """Writes what `load` needs into the folder, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, VOCABULARY_FILE).write_text("\n".join(self._pieces) + "\n", encoding="utf-8", newline="\n")
        write_settings(folder, kind="wordpiece", lowercase=self.lowercase, fingerprint=self.fingerprint)

    def _tokens(self, chunk: str) -> list[Token]:
        word = _word(chunk, self.lowercase)
        if len(word.encode()) > _MAX_WORD_BYTES:
            return [Token(UNK_ID, RESERVED_PIECES[UNK_ID], (0, len(word.encode())))]
        return self._model.tokenize(word)

    def _cut(self, chunk: str) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        """Ids of a chunk's word, bytes of the chunk, and of the part of it up to the end of each token."""
        size, word, tokens = len(chunk.encode()), word_of(chunk), self._tokens(chunk)
        word_size = len(word.encode())
        folded_size = len(_word(chunk, self.lowercase).encode())
        ends = (size - word_size + token.offsets[1] * word_size // folded_size for token in tokens)
        return tuple(token.id for token in tokens), size, tuple(ends)

    def _part_ids(self, part: str) -> tuple[int, ...]:
        """Ids of what stands between two spaces."""
        return tuple(token for chunk in split(part) for token in self._chunks[chunk][0])

    def _part_ends(self, part: str) -> tuple[int, tuple[int, ...]]:
        """Bytes of what stands between two spaces, and of it up to the end of each token."""
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


class _Remembered(dict[str, Any]):
    """What a function gives for each string, found once; all is forgotten when it grows too large."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function

    def __missing__(self, text: str) -> Any:
        if len(self) >= _REMEMBERED:
            self.clear()
        self[text] = found = self._function(text)
        return found


@functools.lru_cache(4)
def _unpickled(pieces: tuple[str, ...], lowercase: bool) -> WordPiece:
    return WordPiece(pieces, lowercase)


def train(texts: Iterable[str], vocabulary_size: int, lowercase: bool, exact: bool = True) -> WordPiece:
    """Trains `vocabulary_size` pieces on the texts, which are read once and not held.

    The same words give the same vocabulary, in any order and process. Hugging Face's trainer numbers the "##"
    characters as a randomly ordered hash map yields them, and breaks ties between merges by number; naming all
    characters beforehand fixes the numbers.

    Raises:
        UserError: the text has too many characters for so few pieces, or, if `exact`, too few words for so many.
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
        raise UserError("the training text of the tokenizer holds no word; check --data.corpus and --data.files")

    first = sorted({char for word in counts for char in word})
    later = sorted({char for word in counts for char in word[1:]})
    named = [*RESERVED_PIECES, *first, *(_CONTINUES + char for char in later)]
    if vocabulary_size < len(named):
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too few for the {len(first)} characters of the training "
            f"text, each a piece at a word's start and inside; ask for at least {len(named)}"
        )

    tokenizer = Tokenizer(models.WordPiece(unk_token=RESERVED_PIECES[UNK_ID]))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=named, show_progress=False)
    tokenizer.train_from_iterator(_repeated(counts), trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    if exact and len(ids) < vocabulary_size:
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is more than the training text can fill; "
            f"it gives {len(ids)} pieces: add --tokenizer.no-exact, or ask for at most {len(ids)}"
        )
    return WordPiece(sorted(ids, key=ids.__getitem__), lowercase)


def read_vocabulary(path: Path) -> list[str]:
    """Pieces of a vocabulary file, one a line. OSError and UnicodeDecodeError are the caller's to explain."""
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _word(chunk: str, lowercase: bool) -> str:
    return fold(word_of(chunk)) if lowercase else word_of(chunk)


def _repeated(counts: Counter[str]) -> Iterator[str]:
    """Each word as often as it occurs, since the trainer takes texts and no counts; in texts of bounded length."""
    for word, count in counts.items():
        for start in range(0, count, 1000):
            yield f"{word}\n" * min(count - start, 1000)


def _check(pieces: Sequence[str]) -> None:
    for token, reserved in enumerate(RESERVED_PIECES):
        found = repr(pieces[token]) if token < len(pieces) else "nothing"
        if found != repr(reserved):
            raise UserError(
                f"piece {token} of a WordPiece vocabulary must be {reserved}, and here is {found}; "
                f"begin it with {', '.join(RESERVED_PIECES)}"
            )
    first_at: dict[str, int] = {}
    for token, piece in enumerate(pieces):
        if not piece:
            raise UserError(f"piece {token} of the WordPiece vocabulary is empty; remove the blank line")
        if first_at.setdefault(piece, token) != token:
            raise UserError(
                f"pieces {first_at[piece]} and {token} of the WordPiece vocabulary are both {piece!r}; keep one"
            )
