"""WordPiece and SentencePiece as Hugging Face `tokenizers` run them, for the programs that read a tokenizer.json.

This project itself reads its own files, since `tokenizers` differs in what is rare in text: see `of_wordpiece`. Of
SentencePiece, it reads words such as `<0x41>`, which name a byte, as that byte, and the character that stands for a
space in pieces as a space; it chooses otherwise between unigram pieces of exactly the same probability; it may cut the
user-defined symbols of a byte-pair model; and unknown characters beside a reserved piece that a text spells out are
several unknown pieces instead of one.
"""

import functools
import itertools
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
# What the functions of `characters` tell, as patterns: blanks, words of one character, and what folding deletes.
_BLANKS = r"[\p{Cc}\p{Cf}]"
_SINGLES = (
    r"[!-/:-@\[-`{-~\p{P}\u4e00-\u9fff\u3400-\u4dbf\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}"
    r"\x{2b820}-\x{2ceaf}\uf900-\ufaff\x{2f800}-\x{2fa1f}]"
)
_IGNORED = r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\x{e0100}-\x{e01ef}]"
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF900)]
_MAX_WORD = 100  # a longer word is unknown


def to_json(theirs: Tokenizer, special: Sequence[str] = RESERVED_PIECES) -> str:
    """The contents of a tokenizer.json, in which these pieces are special tokens."""
    theirs = Tokenizer.from_str(theirs.to_str())
    theirs.add_special_tokens(list(special))
    return theirs.to_str()


def of_wordpiece(pieces: Sequence[str], lowercase: bool) -> Tokenizer:
    """WordPiece as `tokenizers` runs it, which folds a text before it is split; here each word is folded by itself.

    Folding makes several characters of some punctuation: `…` becomes the one word `...` here, which `tokenizers` would
    split. So a mark, a character of the private use area that no piece has, is put around such a word until it is cut
    out. Words with other characters that fold to punctuation or spaces, such as `½`, may be encoded differently.
    """
    theirs = Tokenizer(
        models.WordPiece(
            {piece: token for token, piece in enumerate(pieces)},
            unk_token=RESERVED_PIECES[UNK_ID],
            max_input_chars_per_word=_MAX_WORD,
        )
    )
    in_use = frozenset("".join(pieces))
    mark, other = itertools.islice((char for char in _PRIVATE_USE if char not in in_use), 2)
    steps: list[Any] = [normalizers.Replace(Regex(_BLANKS), " ")]
    if lowercase:
        steps.append(normalizers.Replace(mark, other))  # in the text itself it is as unknown as any other
        steps += [normalizers.Replace(char, f"{mark}{word}{mark}") for char, word in _unsplit().items()]
        steps += [normalizers.Replace(Regex(_IGNORED), ""), normalizers.NFKC(), normalizers.Lowercase()]
        steps += [normalizers.Replace("ß", "ss"), normalizers.Replace("ς", "σ"), normalizers.NFKC()]
    theirs.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    cuts = [pre_tokenizers.Split(" ", "removed")]
    if lowercase:
        cuts.append(pre_tokenizers.Split(Regex(f"{mark}[^{mark}]*{mark}|{_SINGLES}"), "isolated"))
        cuts.append(pre_tokenizers.Split(mark, "removed"))
    else:
        cuts.append(pre_tokenizers.Split(Regex(_SINGLES), "isolated"))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(cuts)  # pyright: ignore[reportAttributeAccessIssue]
    theirs.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # pyright: ignore[reportAttributeAccessIssue]
    return theirs


@functools.cache
def _unsplit() -> dict[str, str]:
    """The characters that are words of their own and fold to several characters, by what they fold to."""
    folded = {char: fold(char) for char in map(chr, range(0x80, 0x10000)) if is_single(char)}
    return {char: word for char, word in folded.items() if len(word) > 1}


def of_sentencepiece(model: bytes) -> Tokenizer:
    """A SentencePiece model, given as the contents of its file, with its normaliser.

    Raises:
        UserError: it is neither a unigram nor a byte-pair model, or it puts spaces at the ends of words.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    processor = SentencePieceProcessor(model_proto=model)
    pieces = [
        (piece.piece, _UNREACHABLE if processor.is_control(i) or processor.is_unknown(i) else piece.score)
        for i, piece in enumerate(proto.pieces)
    ]
    if trainer.treat_whitespace_as_suffix or not normaliser.escape_whitespaces:
        raise UserError("the SentencePiece model puts spaces elsewhere than in front of words, unlike tokenizers")
    if trainer.model_type == trainer.UNIGRAM:
        algorithm: Any = models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        algorithm = models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            _merges(pieces, {i for i in range(len(pieces)) if processor.is_control(i) or processor.is_byte(i)}),
            unk_token=proto.pieces[UNK_ID].piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError("the SentencePiece model is neither unigram nor byte-pair, which tokenizers cannot run")
    theirs = Tokenizer(algorithm)
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
