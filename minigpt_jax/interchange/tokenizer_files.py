"""tokenizer.json and tokenizer_config.json of an exported folder, as `tokenizers` and Transformers read them."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors

from minigpt_jax.config import RESERVED_PIECES, UNK_ID, dumps
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import HuggingFace, WordPiece
from minigpt_jax.tokenizer import Tokenizer as OurTokenizer
from minigpt_jax.tokenizer.description import of_sentencepiece, of_wordpiece

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def write_tokenizer(tokenizer: OurTokenizer, folder: Path, end_id: int, window: int) -> Tokenizer:
    """Writes a tokenizer into a folder. Returns it as `tokenizers` runs it.

    Its ids are those of the given one, but for what is rare in text: see `tokenizer.description`. It puts the start
    token in front of a text.

    Args:
        end_id: the token that ends a text.
        window: the most tokens that the model was trained on.

    Raises:
        UserError: it is a SentencePiece model of a kind that `tokenizers` cannot run.
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
        return of_wordpiece([tokenizer.piece(token) or "" for token in range(len(tokenizer))], tokenizer.lowercase)
    return of_sentencepiece(tokenizer.model)
