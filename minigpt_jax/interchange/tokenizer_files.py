"""tokenizer.json and tokenizer_config.json of an exported folder, as `tokenizers` and Transformers read them."""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minigpt_jax.config import RESERVED_PIECES, UNK_ID, dumps
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import HuggingFace, SentencePiece, WordPiece
from minigpt_jax.tokenizer import Tokenizer as OurTokenizer
from minigpt_jax.tokenizer.characters import fold, is_single

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPACE = "\u2581"  # represents a space in pieces of SentencePiece
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


def write_tokenizer(tokenizer: OurTokenizer, folder: Path, end_id: int, window: int) -> Tokenizer:
    """Writes a tokenizer into a folder. Returns it as `tokenizers` runs it.

    Its ids are those of the given one; for WordPiece they are so for almost all texts, see `_wordpiece`. It puts the
    start token in front of a text.

    Args:
        end_id: the token that ends a text.
        window: the most tokens that the model was trained on.

    Raises:
        UserError: it is a SentencePiece model of a kind that `tokenizers` does not have.
    """
    special = tokenizer.special
    theirs = converted(tokenizer)
    start = tokenizer.piece(special.start) or RESERVED_PIECES[special.start]
    known = {token.content for token in theirs.get_added_tokens_decoder().values()}
    special_pieces = map(tokenizer.piece, (*special.banned, *([UNK_ID] if is_own(tokenizer) else [])))
    added = [piece for piece in special_pieces if piece and piece not in known]
    theirs.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in added])
    if theirs.token_to_id(start) != special.start:
        raise UserError(f"the tokenizer's start token has id {special.start}, which {TOKENIZER} cannot give it")
    theirs.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=[start, "$A"], pair=[start, "$A", "$B"], special_tokens=[(start, special.start)]
    )
    theirs.save(str(folder / TOKENIZER))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": tokenizer.piece(end_id) or start,
        "pad_token": tokenizer.piece(special.line_end) or start,
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
    }
    if is_own(tokenizer):
        # A reserved piece that a text spells out is text here.
        config |= {"unk_token": RESERVED_PIECES[UNK_ID], "split_special_tokens": True}
    (folder / TOKENIZER_CONFIG).write_text(dumps(config), "utf-8")
    return theirs


def differing_lines(tokenizer: OurTokenizer, theirs: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """How many of the texts the exported tokenizer encodes differently, and how many texts there are."""
    texts = list(texts)
    ours = tokenizer.encode_batch(texts)
    theirs.encode_special_tokens = is_own(tokenizer)
    found = theirs.encode_batch(texts, add_special_tokens=False)
    return sum(one != other.ids for one, other in zip(ours, found, strict=True)), len(texts)


def is_own(tokenizer: OurTokenizer) -> bool:
    """Whether the tokenizer begins with this project's reserved pieces."""
    return tuple(map(tokenizer.piece, range(len(RESERVED_PIECES)))) == RESERVED_PIECES


def converted(tokenizer: OurTokenizer) -> Tokenizer:
    """The tokenizer as `tokenizers` runs it, without what it puts around a text."""
    if isinstance(tokenizer, HuggingFace):
        theirs = Tokenizer.from_str(tokenizer.description)
        theirs.no_truncation()
        theirs.no_padding()
        return theirs
    if isinstance(tokenizer, WordPiece):
        return _wordpiece([tokenizer.piece(token) or "" for token in range(len(tokenizer))], tokenizer.lowercase)
    return _sentencepiece(tokenizer)


def _wordpiece(pieces: Sequence[str], lowercase: bool) -> Tokenizer:
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


def _sentencepiece(tokenizer: SentencePiece) -> Tokenizer:
    """A SentencePiece model, unigram or byte-pair, with its normaliser."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    processor = SentencePieceProcessor(model_proto=tokenizer.model)
    pieces = [
        (piece.piece, _UNREACHABLE if processor.is_control(i) or processor.is_unknown(i) else piece.score)
        for i, piece in enumerate(proto.pieces)
    ]
    if trainer.model_type == trainer.UNIGRAM:
        model: Any = models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        model = models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            _merges(pieces, {i for i in range(len(pieces)) if processor.is_control(i) or processor.is_byte(i)}),
            unk_token=RESERVED_PIECES[UNK_ID],
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError("the SentencePiece model is neither unigram nor byte-pair, which tokenizers cannot run")
    theirs = Tokenizer(model)
    steps: list[Any] = []
    if normaliser.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normaliser.precompiled_charsmap))
    if normaliser.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normaliser.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    theirs.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])  # pyright: ignore[reportAttributeAccessIssue]
    if trainer.model_type == trainer.UNIGRAM:
        # Where a text spells a control piece by characters that no piece has, the piece would still be the best one.
        reserved = [piece for i, (piece, _) in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)]
        beginnings = "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in reserved)
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(beginnings), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    decoder: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
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
