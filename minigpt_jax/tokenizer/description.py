"""WordPiece and SentencePiece as a tokenizer.json, for the programs that read such a file.

This project itself reads its own files, since Hugging Face `tokenizers` differs in what is rare in text. WordPiece here
folds case after a text is cut into words, and `tokenizers` before. And of SentencePiece, `tokenizers` reads words such
as `<0x41>`, which name a byte, as that byte, and the character that stands for a space in pieces as a space; it also
chooses otherwise between unigram pieces of exactly the same probability.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from minigpt_jax.config import RESERVED_PIECES, UNK_ID

SPACE = "\u2581"
"""Represents a space in pieces of SentencePiece."""
_UNKNOWN = RESERVED_PIECES[UNK_ID]


def of_wordpiece(model: models.WordPiece, lowercase: bool) -> str:
    """The contents of the tokenizer.json of a WordPiece vocabulary."""
    tokenizer = Tokenizer(model)
    folding = normalizers.BertNormalizer(strip_accents=False, lowercase=lowercase)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), folding]) if lowercase else folding
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_reserved(tokenizer)


def of_sentencepiece(pieces: Sequence[str], scores: Sequence[float], first: int) -> str:
    """The contents of the tokenizer.json of a lossless SentencePiece model.

    Args:
        pieces: the pieces by id.
        scores: the score of each: its log-probability in a unigram model, and minus its rank in one of pairs.
        first: the first id that is neither reserved nor a byte.
    """
    ranks = [-float(rank) for rank in range(len(pieces) - first)]
    if list(scores[first:]) == ranks:
        vocabulary = {piece: token for token, piece in enumerate(pieces)}
        merges = _merges(pieces[first:])
        model = models.BPE(vocabulary, merges, unk_token=_UNKNOWN, fuse_unk=True, byte_fallback=True)
    else:
        model = models.Unigram(list(zip(pieces, scores, strict=True)), UNK_ID, True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_reserved(tokenizer)


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of pieces that are joined, in the order of their ranks: those that give a piece, for each piece."""
    rank = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(left, right) for left, right in cuts if left in rank and right in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return merges


def _with_reserved(tokenizer: Tokenizer) -> str:
    tokenizer.add_special_tokens(list(RESERVED_PIECES))
    return tokenizer.to_str()
