"""SentencePiece (Kudo and Richardson 2018): unigram or byte-pair pieces of raw text, spaces included.

Models trained here are lossless: text is not normalised, all spaces are kept, and characters without a piece are
encoded as bytes, so that decoding gives any text back exactly. A model from a file of the user's is used as it is.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from minigpt_jax.config import BOS_ID, PAD_ID, RESERVED_PIECES, UNK_ID
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.description import SPACE, of_sentencepiece, to_json
from minigpt_jax.tokenizer.settings import write_description, write_settings
from minigpt_jax.tokenizer.special import OWN
from minigpt_jax.tokenizer.unicode import without_surrogates

MODEL_FILE = "sentencepiece.model"

_LEAST = len(RESERVED_PIECES) + 256  # the reserved pieces and the bytes
_SENTENCE = re.compile(r"[^\n]{1,1000}(?!\S)|[^\n]{1,1000}")  # at most 1,000 characters, cut between words if possible
_MAX_SENTENCES = 200_000  # about 40 MB of English; unigram training takes 20 times as much memory
_THREADS = 4  # of the unigram trainer; constant, as the order of its sums, and so its pieces, depend on it
Found = re.Match[str] | None
_LOSSLESS_PROBE = f"  A\u00bd\u212be\u0301{SPACE}\n\t\U0010fffd  z "


class SentencePiece:
    """A SentencePiece model whose padding, unknown and beginning-of-sequence pieces have this project's ids.

    Args:
        model_file: the path of a `.model` file.

    Raises:
        UserError: the file cannot be read, is not a model, or has other ids for these pieces.
    """

    special = OWN

    def __init__(self, model_file: str | Path):
        try:
            model = Path(model_file).read_bytes()
        except OSError as error:
            raise UserError(f"{model_file}: cannot be read ({error.strerror}); give a SentencePiece .model") from error
        try:
            self._load(model)
        except UserError as error:
            raise UserError(f"{model_file}: {error}") from error

    @classmethod
    def from_bytes(cls, model: bytes) -> "SentencePiece":
        """Makes a tokenizer from the contents of a `.model` file."""
        self = cls.__new__(cls)
        self._load(model)
        return self

    def __reduce__(self):
        return SentencePiece.from_bytes, (self._model,)

    def __len__(self) -> int:
        return len(self._processor)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the model."""
        return hashlib.sha256(b"sentencepiece" + self._model).hexdigest()

    @property
    def model(self) -> bytes:
        """The contents of the `.model` file."""
        return self._model

    def piece(self, token: int) -> str | None:
        """The piece of an id, or None if the vocabulary has no piece with this id."""
        return self._processor.id_to_piece(token) if 0 <= token < len(self) else None

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, without special tokens."""
        texts = list(map(without_surrogates, texts))
        encoded = self._processor.encode(texts)
        if self._lossless:
            for i, text in enumerate(texts):
                if SPACE in text:
                    encoded[i] = self._encode_apart(text)
        return encoded

    def encode_batch_with_ends(self, texts: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids of each text (int32), and the number of UTF-8 bytes of text up to the end of each token (int64)."""
        texts = list(map(without_surrogates, texts))
        if self._lossless:
            rows = [np.array(ids, np.int32) for ids in self.encode_batch(texts)]
            return [(row, self._piece_bytes[row].cumsum()) for row in rows]
        rows = self._processor.encode([text.encode() for text in texts], return_type="offset_mapping")
        return [
            (np.array(row["ids"], np.int32), np.array([end for _, end in row["offsets"]], np.int64)) for row in rows
        ]

    def decode(self, ids: Iterable[int], tidy: bool = True) -> str:
        """The text of the ids. [PAD], [BOS] and ids without a piece are skipped.

        Invalid sequences of bytes become U+FFFD. `tidy` has no effect, as spacing is exact.
        """
        ids = [int(token) for token in ids]
        return self._processor.decode([token for token in ids if 0 <= token < len(self)])

    def save(self, folder: str | Path) -> None:
        """Saves the tokenizer into the folder, from which `load` reads it. The folder is created if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, MODEL_FILE).write_bytes(self._model)
        with contextlib.suppress(UserError):  # some models from files `tokenizers` cannot run
            reserved = [i for i in range(len(self)) if self._processor.is_control(i) or self._processor.is_unknown(i)]
            special = [self._processor.id_to_piece(token) for token in reserved]
            write_description(folder, to_json(of_sentencepiece(self._model), special))
        write_settings(folder, kind="sentencepiece", fingerprint=self.fingerprint)

    def _load(self, model: bytes) -> None:
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError:
            processor = None
        if processor is None:
            raise UserError("not a SentencePiece model; give a .model file that SentencePiece's trainer wrote")
        ids = (processor.pad_id(), processor.unk_id(), processor.bos_id())
        if ids != (PAD_ID, UNK_ID, BOS_ID):
            raise UserError(
                f"the SentencePiece model has pad, unk and bos at ids {ids[0]}, {ids[1]} and {ids[2]} (-1: none); "
                f"train it with pad_id={PAD_ID}, unk_id={UNK_ID} and bos_id={BOS_ID}"
            )
        self._model = model
        self._processor = processor
        self._piece_bytes = np.array([self._bytes_of(token) for token in range(len(self))], np.int64)
        self._space_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._lossless = self.decode(self._encode_apart(_LOSSLESS_PROBE)) == _LOSSLESS_PROBE

    def _bytes_of(self, token: int) -> int:
        """The number of UTF-8 bytes that a piece of a lossless model stands for."""
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return 0
        if self._processor.is_byte(token):
            return 1
        return len(self._processor.id_to_piece(token).replace(SPACE, " ").encode())

    def _encode_apart(self, text: str) -> list[int]:
        """Encodes text, with the character that represents spaces in pieces as bytes: else it would become a space."""
        first, *rest = self._processor.encode(text.split(SPACE))
        return [*first, *(token for part in rest for token in (*self._space_ids, *part))]


def train(
    texts: Iterable[str], vocabulary_size: int, kind: Literal["unigram", "bpe"], exact: bool = True
) -> SentencePiece:
    """Trains `vocabulary_size` pieces on the texts, or on a uniform sample of them if there are many.

    Unless `exact`, texts with too few words give fewer pieces, and of texts with too many characters the rarest
    characters are encoded as bytes.

    The same texts in the same order give the same model in any process. The sample is therefore drawn here: that of the
    trainer (`input_sentence_size`) differs from process to process for any seed.

    Raises:
        UserError: the texts contain no word, or, if `exact`, they have too many characters or too few words for this
            number of pieces.
    """
    sentences = _sample(_sentences(texts), _MAX_SENTENCES)
    if not any(sentence.strip() for sentence in sentences):
        raise UserError("the training text of the tokenizer contains no word; check --data.corpus and --data.files")
    return _fit(sentences, vocabulary_size, kind, exact)


def _fit(sentences: list[str], vocabulary_size: int, kind: str, exact: bool) -> SentencePiece:
    try:
        return _train(sentences, vocabulary_size, kind)
    except RuntimeError as error:
        most = re.search(r"Please set it to a value <= (\d+)", str(error))
        least = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if most and not exact:
            return _fit(sentences, int(most[1]), kind, exact)
        if least and not exact and (characters := (vocabulary_size - _LEAST) // 2) > 0:
            return _fit(_without_rare(sentences, characters), vocabulary_size, kind, exact)
        raise UserError(_explain(error, vocabulary_size, most, least, exact)) from error


def _train(sentences: list[str], vocabulary_size: int, kind: str) -> SentencePiece:
    """Trains a model. The trainer raises RuntimeError if the sentences do not give exactly this number of pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=kind,
        vocab_size=vocabulary_size,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=-1,
        pad_piece=RESERVED_PIECES[PAD_ID],
        unk_piece=RESERVED_PIECES[UNK_ID],
        bos_piece=RESERVED_PIECES[BOS_ID],
        unk_surface=RESERVED_PIECES[UNK_ID],
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,  # numbers are encoded digit by digit, whether or not they occur in the corpus
        max_sentence_length=4 * 1000,  # in bytes; longer sentences would be skipped
        num_threads=_THREADS,
        minloglevel=2,
    )
    return SentencePiece.from_bytes(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _SENTENCE.findall(without_surrogates(text))


def _sample(sentences: Iterable[str], size: int) -> list[str]:
    """Draws a uniform sample in one pass (Vitter's algorithm R). It is the same at every call."""
    rng = random.Random(0)
    sample: list[str] = []
    for seen, sentence in enumerate(sentences):
        if seen < size:
            sample.append(sentence)
        elif (slot := rng.randrange(seen + 1)) < size:
            sample[slot] = sentence
    return sample


def _without_rare(sentences: list[str], size: int) -> list[str]:
    """The parts of the sentences that consist of the `size` most frequent characters."""
    counts = Counter(itertools.chain.from_iterable(sentences))
    common = sorted(counts, key=lambda char: (-counts[char], char))[:size]
    rare = dict.fromkeys(map(ord, counts.keys() - set(common)), "\n")
    return [part for sentence in sentences for part in sentence.translate(rare).split("\n") if part]


def _explain(error: RuntimeError, vocabulary_size: int, most: Found, least: Found, exact: bool) -> str:
    """Explains an error of the trainer in one line that names the flag."""
    advice = "add --tokenizer.no-exact, or give" if exact else "give"
    if least:
        return (
            f"--tokenizer.vocabulary-size {vocabulary_size} is too small for the reserved pieces, the 256 bytes and "
            f"the characters of the training text; {advice} at least {least[1]}"
        )
    if most:
        return (
            f"--tokenizer.vocabulary-size {vocabulary_size} is too large for the training text, which gives "
            f"{most[1]} pieces; {advice} at most {most[1]}"
        )
    return f"SentencePiece cannot be trained on this text ({str(error).strip()}); try --tokenizer.kind wordpiece"
