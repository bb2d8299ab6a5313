"""Tokenizers that Hugging Face `tokenizers` runs and that are made here: byte-level BPE, characters, and bytes.

All begin with the reserved pieces. Byte-level BPE and bytes give any text back exactly; characters do if the training
text has them all.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minigpt_jax.config import RESERVED_PIECES, UNK_ID
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.huggingface import HuggingFace
from minigpt_jax.tokenizer.special import OWN
from minigpt_jax.tokenizer.unicode import without_surrogates

BYTES = 256


def train_byte_bpe(texts: Iterable[str], vocabulary_size: int, exact: bool = True) -> HuggingFace:
    """Byte-level BPE (Radford et al. 2019), with GPT-2's rules for where words end.

    The same texts give the same pieces, in any order and in any process.

    Raises:
        UserError: `vocabulary_size` does not hold the 256 bytes; or the texts contain no word or, if `exact`, too few
            for this number of pieces.
    """
    least = len(RESERVED_PIECES) + BYTES
    if vocabulary_size < least:
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too small for the reserved pieces and the 256 bytes; "
            f"give at least {least}"
        )
    tokenizer = _byte_level({}, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(RESERVED_PIECES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_checked(texts), trainer)
    pieces = tokenizer.get_vocab_size()
    if exact and pieces < vocabulary_size:
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too large for the training text, which gives {pieces} "
            f"pieces; add --tokenizer.no-exact, or give at most {pieces}"
        )
    return _own(tokenizer)


def byte() -> HuggingFace:
    """The 256 bytes, each a piece."""
    pieces = [*RESERVED_PIECES, *_byte_characters()]
    return _own(_byte_level({piece: token for token, piece in enumerate(pieces)}, use_regex=False))


def train_char(texts: Iterable[str], vocabulary_size: int | None = None, exact: bool = True) -> HuggingFace:
    """The characters (code points) of the texts, in the order of their code points. Others become [UNK].

    Raises:
        UserError: the texts contain no word; or, if `exact`, they have more characters than `vocabulary_size` holds.
            If not `exact`, the most frequent ones are pieces.
    """
    counts: Counter[str] = Counter()
    for text in _checked(texts):
        counts.update(text)
    room = len(counts) if vocabulary_size is None else vocabulary_size - len(RESERVED_PIECES)
    if len(counts) > room and exact:
        raise UserError(
            f"--tokenizer.vocabulary-size {vocabulary_size} is too small for the {len(counts)} characters of the "
            f"training text; add --tokenizer.no-exact, or give at least {len(counts) + len(RESERVED_PIECES)}"
        )
    common = sorted(counts, key=lambda char: (-counts[char], char))[:room]
    pieces = [*RESERVED_PIECES, *sorted(common)]
    # Without merges, BPE gives each character a piece, and one that has none the unknown piece.
    unknown = RESERVED_PIECES[UNK_ID]
    tokenizer = Tokenizer(models.BPE({piece: token for token, piece in enumerate(pieces)}, [], unk_token=unknown))
    tokenizer.decoder = decoders.Fuse()
    return _own(tokenizer)


def _byte_level(vocabulary: dict[str, int], use_regex: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _own(tokenizer: Tokenizer) -> HuggingFace:
    tokenizer.add_special_tokens(list(RESERVED_PIECES))
    return HuggingFace(tokenizer.to_str(), OWN, reserved_words=False)


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level pieces: a printable one itself, another one a later one."""
    later = itertools.count(BYTES)
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    return [chr(byte if byte in printable else next(later)) for byte in range(BYTES)]


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts as UTF-8 can hold them. Raises UserError at their end if none of them contains a word."""
    has_words = False
    for text in map(without_surrogates, texts):
        has_words = has_words or bool(text.strip())
        yield text
    if not has_words:
        raise UserError("the training text of the tokenizer contains no word; check --data.corpus and --data.files")
