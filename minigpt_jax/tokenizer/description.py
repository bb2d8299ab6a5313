"""WordPiece and SentencePiece as Hugging Face `tokenizers` run them, for the programs that read a tokenizer.json.

This project itself reads its own files, since `tokenizers` differs in what is rare in text: see `of_wordpiece`. It also
chooses otherwise between unigram pieces of exactly the same probability.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minigpt_jax.config import RESERVED_PIECES, UNK_ID
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.characters import fold, is_single

SPACE = "\u2581"
"""Represents a space in pieces of SentencePiece."""
_UNREACHABLE = -1e4
"""The score of a piece that no text should consist of."""
_BLANKS = r"[\p{Cc}\p{Cf}]"
_SINGLES = (
    r"[!-/:-@\[-`{-~\p{P}\u4e00-\u9fff\u3400-\u4dbf\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}"
    r"\x{2b820}-\x{2ceaf}\uf900-\ufaff\x{2f800}-\x{2fa1f}]"
)
_IGNORED = r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\x{e0100}-\x{e01ef}]"
_FIRST_STAND_IN = 0xE000  # of the private use area
_MAX_WORD = 100  # a longer word is unknown


def contents(theirs: Tokenizer) -> str:
    """What a tokenizer.json holds for a tokenizer of this project, whose reserved pieces are special tokens there."""
    theirs.add_special_tokens(list(RESERVED_PIECES))
    return theirs.to_str()


def of_wordpiece(pieces: Sequence[str], lowercase: bool) -> Tokenizer:
    """WordPiece, whose texts are folded before they are split, where WordPiece here folds each word by itself.

    Folding makes several characters of some punctuation: `…` becomes the one word `...` here, which `tokenizers` would
    split. Where it is a piece, a character of the private use area stands for it, from before the split until it is
    decoded. Words with other characters that fold to punctuation or spaces, such as `½`, may be encoded differently.
    """
    stand_ins = _stand_ins() if lowercase else {}
    vocabulary = {stand_ins.get(piece, piece): token for token, piece in enumerate(pieces)}
    theirs = Tokenizer(
        models.WordPiece(vocabulary, unk_token=RESERVED_PIECES[UNK_ID], max_input_chars_per_word=_MAX_WORD)
    )
    steps: list[Any] = [normalizers.Replace(Regex(_BLANKS), " ")]
    if lowercase:
        steps += [normalizers.Replace(char, stand_ins[word]) for char, word in _unsplit().items()]
        steps += [normalizers.Replace(Regex(_IGNORED), ""), normalizers.NFKC(), normalizers.Lowercase()]
        steps += [normalizers.Replace("ß", "ss"), normalizers.Replace("ς", "σ"), normalizers.NFKC()]
    theirs.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    singles = _SINGLES[:-1] + "".join(stand_ins.values()) + "]"
    theirs.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(singles), "isolated")]
    )
    decoder: list[Any] = [decoders.Replace(one, word) for word, one in stand_ins.items() if one in vocabulary]
    theirs.decoder = decoders.Sequence([*decoder, decoders.WordPiece(prefix="##", cleanup=True)])  # pyright: ignore[reportAttributeAccessIssue]
    return theirs


@functools.cache
def _unsplit() -> dict[str, str]:
    """The characters that are words of their own and fold to several characters, by what they fold to."""
    folded = {char: fold(char) for char in map(chr, range(0x80, 0x10000)) if is_single(char)}
    return {char: word for char, word in folded.items() if len(word) > 1}


def _stand_ins() -> dict[str, str]:
    """A character of the private use area for each word of several characters that one character folds to."""
    return {word: chr(_FIRST_STAND_IN + i) for i, word in enumerate(dict.fromkeys(_unsplit().values()))}


def of_sentencepiece(model: bytes) -> Tokenizer:
    """A SentencePiece model, given as the contents of its file, with its normaliser.

    Raises:
        UserError: it is neither a unigram nor a byte-pair model.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    processor = SentencePieceProcessor(model_proto=model)
    pieces = [
        (piece.piece, _UNREACHABLE if processor.is_control(i) or processor.is_unknown(i) else piece.score)
        for i, piece in enumerate(proto.pieces)
    ]
    if trainer.model_type == trainer.UNIGRAM:
        runs: Any = models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        runs = models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            _merges(pieces, {i for i in range(len(pieces)) if processor.is_control(i) or processor.is_byte(i)}),
            unk_token=RESERVED_PIECES[UNK_ID],
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError("the SentencePiece model is neither unigram nor byte-pair, which tokenizers cannot run")
    theirs = Tokenizer(runs)
    steps: list[Any] = []
    if normaliser.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normaliser.precompiled_charsmap))
    if normaliser.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normaliser.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    theirs.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])  # pyright: ignore[reportAttributeAccessIssue]
    if trainer.model_type == trainer.UNIGRAM:
        # Where a text spells a control piece by characters that no piece has, the piece would still be the best one.
        reserved = [piece for i, (piece, _) in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)]
        beginnings = "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in reserved)
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(beginnings), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    decoder: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if normaliser.add_dummy_prefix:
        decoder.append(decoders.Strip(" ", 1, 0))
    theirs.decoder = decoders.Sequence(decoder)  # pyright: ignore[reportAttributeAccessIssue]
    return theirs


def _merges(pieces: Sequence[tuple[str, float]], left_out: set[int]) -> list[tuple[str, str]]:
    """The merges of a byte-pair model, by the scores of the pieces that they make, the earliest first."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces) if i not in left_out}
    found = [
        (-pieces[i][1], ids[piece[:n]], ids[piece[n:]])
        for piece, i in ids.items()
        for n in range(1, len(piece))
        if piece[:n] in ids and piece[n:] in ids
    ]
    return [(pieces[left][0], pieces[right][0]) for _, left, right in sorted(found)]
