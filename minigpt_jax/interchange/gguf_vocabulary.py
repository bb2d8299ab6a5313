"""The vocabulary of a GGUF file: the pieces of a tokenizer, and by which of its tokenizers llama.cpp applies them.

llama.cpp has four that fit: `llama`, SentencePiece's byte-pair encoding; `t5`, its unigram model; `gpt2`, byte-level
BPE; and `bert`, WordPiece. Where one gives other ids than the tokenizer here, `about` says for which texts. Ids always
have the same pieces.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.tokenizer import HuggingFace, SentencePiece, Tokenizer, WordPiece
from minigpt_jax.tokenizer.description import SPACE

_CONTINUES = "##"
_UNREACHABLE = -1e4
"""The score of a piece that no text should consist of."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2"}
"""The names by which llama.cpp knows patterns that cut text into words."""
_SAME = "llama.cpp encodes texts as training did"
_SIMILAR = (
    "llama.cpp has no such rules for where words end or how texts are normalised, so that texts may get other ids"
)
_NO_BYTES = "llama.cpp gives characters that have no piece [UNK], and training spelled them in bytes"
_AS_IT_IS = {"add_space_prefix": False, "remove_extra_whitespaces": False}


class Kind(IntEnum):
    """What a token is, as GGUF and SentencePiece number it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The pieces by id, and how llama.cpp applies them.

    Attributes:
        model: the name of llama.cpp's tokenizer.
        pieces: the piece of each id.
        kinds: what each piece is.
        about: how the ids of llama.cpp compare with those of training.
        scores: the score of each piece, for `llama` and `t5`.
        merges: the pairs of pieces that are joined, in their order, for `gpt2`.
        pattern: the name of the pattern that cuts text into words.
        switches: settings of the tokenizer that are on or off.
        charsmap: SentencePiece's compiled normaliser, for `t5`.
        ids: the ids of special tokens, by their names in `GGUFWriter`.
        suppressed: the ids that are never sampled.
    """

    model: str
    pieces: list[str]
    kinds: list[Kind]
    about: str = _SAME
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    pattern: str = "default"
    switches: Mapping[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""
    ids: Mapping[str, int] = field(default_factory=dict)
    suppressed: Sequence[int] = ()

    def add_to(self, writer: Any) -> None:
        """Adds it to the metadata of a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pattern)
        writer.add_token_list(self.pieces)
        writer.add_token_types([int(kind) for kind in self.kinds])
        if self.scores:
            writer.add_token_scores([float(score) for score in self.scores])
        writer.add_token_merges(self.merges)
        writer.add_precompiled_charsmap(self.charsmap)
        for name, on in {"add_bos_token": True, "add_eos_token": False, **self.switches}.items():
            writer.add_bool(f"tokenizer.ggml.{name}", on)
        for name, token in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_array("tokenizer.ggml.suppress_tokens", self.suppressed)


def vocabulary(lm: LanguageModel) -> Vocabulary:
    """The vocabulary of a model, with a piece for each row of its embedding.

    Raises:
        UserError: llama.cpp has no tokenizer of this kind.
    """
    tokenizer, rows = lm.tokenizer, lm.model.vocabulary_size
    special, ends = tokenizer.special, lm.end_ids
    found = _of(tokenizer)
    pieces, kinds = list(found.pieces[:rows]), list(found.kinds[:rows])
    for token in range(len(pieces), rows):
        pieces.append(f"<unused{token}>")
        kinds.append(Kind.UNUSED)
    for token in special.banned:
        kinds[token] = Kind.UNUSED if tokenizer.piece(token) is None else Kind.CONTROL
    if special.unknown is not None:
        kinds[special.unknown] = Kind.UNKNOWN
    ids = {"bos": special.start, "eos": ends[0], "pad": special.line_end}
    if len(ends) > 1:
        ids["eot"] = ends[1]
    if special.unknown is not None:
        ids["unk"] = special.unknown
    if found.model == "bert":  # whose defaults may be ids of other pieces
        ids |= {"sep": special.start, "mask": special.line_end}
    never = {*special.banned, *range(len(tokenizer), rows)} - set(ends)
    return replace(
        found,
        pieces=_distinct(pieces),
        kinds=kinds,
        scores=[*found.scores, *[_UNREACHABLE] * (rows - len(found.scores))] if found.scores else (),
        ids=ids,
        suppressed=sorted(never),
    )


def _of(tokenizer: Tokenizer) -> Vocabulary:
    if isinstance(tokenizer, SentencePiece):
        return _of_sentencepiece(tokenizer)
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    if isinstance(tokenizer, WordPiece):
        return _of_wordpiece(pieces, _special(tokenizer), tokenizer.lowercase, strip_accents=False)
    return _of_description(tokenizer, pieces)


def _special(tokenizer: Tokenizer) -> set[int | None]:
    return {*tokenizer.special.banned, tokenizer.special.unknown}


def _distinct(pieces: Iterable[str]) -> list[str]:
    """The pieces; of several equal ones, all but the first get a name of their own."""
    seen: dict[str, int] = {}
    return [
        piece if piece and seen.setdefault(piece, token) == token else f"<unused{token}>"
        for token, piece in enumerate(pieces)
    ]


def _of_wordpiece(
    pieces: Sequence[str | None], special: set[int | None], lowercase: bool, strip_accents: bool
) -> Vocabulary:
    """WordPiece. In a GGUF file the first piece of a word is marked, and not those that continue it."""
    marked = []
    for token, piece in enumerate(piece or "" for piece in pieces):
        continues = piece.startswith(_CONTINUES) and piece != _CONTINUES
        marked.append(piece if token in special else piece.removeprefix(_CONTINUES) if continues else SPACE + piece)
    return Vocabulary(
        "bert",
        marked,
        [Kind.NORMAL] * len(marked),
        f"{_SAME}, but for words with characters such as ß, ½ or a no-break space: it lowers case letter by letter and "
        "cuts words at other blanks",
        switches={
            "add_sep_token": False,
            "normalizer.lowercase": lowercase,
            "normalizer.strip_accents": strip_accents,
        },
    )


def _of_sentencepiece(tokenizer: SentencePiece) -> Vocabulary:
    """A SentencePiece model, unigram or byte-pair, with its normaliser."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]
    trainer, normaliser = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (trainer.UNIGRAM, trainer.BPE):
        raise UserError("the SentencePiece model is neither unigram nor byte-pair, which llama.cpp cannot run")
    unigram = trainer.model_type == trainer.UNIGRAM
    about = _SAME
    if unigram and trainer.byte_fallback:
        about = _NO_BYTES
    elif not unigram and normaliser.precompiled_charsmap:
        about = (
            "llama.cpp does not normalise texts as training did, so that rare characters and repeated spaces may get "
            "other ids"
        )
    return Vocabulary(
        "t5" if unigram else "llama",
        [piece.piece for piece in proto.pieces],
        [Kind(piece.type) for piece in proto.pieces],
        about,
        scores=[piece.score for piece in proto.pieces],
        switches={
            "add_space_prefix": normaliser.add_dummy_prefix,
            "remove_extra_whitespaces": normaliser.remove_extra_whitespaces,
        },
        charsmap=normaliser.precompiled_charsmap if unigram else b"",
    )


def _of_description(tokenizer: HuggingFace, pieces: Sequence[str | None]) -> Vocabulary:
    """What `tokenizers` runs: by the model that the tokenizer.json names."""
    description = json.loads(tokenizer.description)
    model, steps = description["model"], _steps(description.get("pre_tokenizer"))
    normalisers = _steps(description.get("normalizer"))
    texts = [piece or "" for piece in pieces]
    kinds = [Kind.NORMAL] * len(texts)
    for one in description.get("added_tokens") or []:
        if one["id"] < len(kinds) and not one.get("special"):
            kinds[one["id"]] = Kind.USER_DEFINED
    kind = model.get("type")
    if kind == "WordPiece":
        # BERT's normaliser strips accents where it lowers case, unless it says otherwise.
        bert = next((one for one in normalisers if one["type"] == "BertNormalizer"), {"strip_accents": False})
        types = {one["type"] for one in normalisers}
        lowercase = bool(bert.get("lowercase")) or "Lowercase" in types
        accents = lowercase if bert.get("strip_accents") is None else bert["strip_accents"]
        found = _of_wordpiece(pieces, _special(tokenizer), lowercase, accents or "StripAccents" in types)
        return replace(found, kinds=kinds)
    if kind == "BPE" and any(one["type"] == "ByteLevel" for one in steps):
        return _of_byte_level(tokenizer, texts, kinds, model, steps, normalisers)
    if kind == "BPE" and not model.get(
        "merges"
    ):  # characters, of which a unigram model without longer pieces makes ids
        texts = [text.replace(" ", SPACE) for text in texts]
        about = "llama.cpp gives several characters in a row that have no piece one [UNK], and training gave each one"
        return Vocabulary("t5", texts, kinds, about, scores=[-1.0] * len(texts), switches=_AS_IT_IS)
    prefix = any(
        one["type"] == "Prepend" or (one["type"] == "Metaspace" and one.get("prepend_scheme", "always") != "never")
        for one in (*normalisers, *steps)
    )
    switches = {**_AS_IT_IS, "add_space_prefix": prefix}
    if model.get("byte_fallback"):
        kinds = [Kind.BYTE if _is_byte(text) else kinds[token] for token, text in enumerate(texts)]
    if kind == "BPE" and model.get("byte_fallback"):
        ranks = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(_pairs(model["merges"]))))}
        scores = [ranks.get(text, 0.0 if len(text) == 1 else _UNREACHABLE) for text in texts]
        return Vocabulary("llama", texts, kinds, _SIMILAR, scores=scores, switches=switches)
    if kind == "Unigram":
        charsmap = next((one["precompiled_charsmap"] for one in normalisers if one["type"] == "Precompiled"), "")
        scores = [score for _, score in model["vocab"]]
        scores += [_UNREACHABLE] * (len(texts) - len(scores))
        about = _NO_BYTES if model.get("byte_fallback") else _SIMILAR
        return Vocabulary(
            "t5", texts, kinds, about, scores=scores, switches=switches, charsmap=base64.b64decode(charsmap)
        )
    raise UserError(
        f"--format gguf: the tokenizer.json is a {kind} model without bytes, which llama.cpp has not; take --format "
        "huggingface"
    )


def _of_byte_level(
    tokenizer: HuggingFace,
    pieces: list[str],
    kinds: list[Kind],
    model: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    normalisers: Sequence[Any],
) -> Vocabulary:
    """Byte-level BPE, of which llama.cpp knows the patterns that cut text into words by names."""
    merges = [" ".join(pair) for pair in _pairs(model["merges"])]
    pattern = "gpt-2" if any(one.get("use_regex", True) for one in steps if one["type"] == "ByteLevel") else None
    for one in steps:
        if one["type"] == "Split":
            pattern = _PATTERNS.get(one["pattern"].get("Regex", ""))
    exact = not normalisers and not any(one.get("add_prefix_space") for one in steps)
    if not merges:
        # Each byte is a piece, wherever words end. llama.cpp wants a merge: one of pieces that no text is cut into.
        start = tokenizer.piece(tokenizer.special.start)
        merges, pattern = [f"{start} {start}"], pattern or "gpt-2"
    return Vocabulary(
        "gpt2",
        pieces,
        kinds,
        _SAME if exact and pattern else _SIMILAR,
        merges=merges,
        pattern=pattern or "gpt-2",
    )


def _steps(value: Any) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or a pre-tokeniser."""
    if not value:
        return []
    if value["type"] == "Sequence":
        return [step for one in value.get("normalizers") or value.get("pretokenizers") or [] for step in _steps(one)]
    return [value]


def _pairs(merges: Iterable[Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json, which are pairs or, in older files, texts with a space between the two pieces."""
    return [(left, right) for left, right in (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges)]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
