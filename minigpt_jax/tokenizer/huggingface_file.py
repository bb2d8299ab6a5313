"""A tokenizer.json of the user's own: which of its tokens begin and end a text."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer.huggingface import HuggingFace, pieces, read
from minigpt_jax.tokenizer.special import SpecialIds
from minigpt_jax.utf8 import check_encoding

_STARTS = ("<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>", "[BOS]", "[CLS]")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[EOS]", "[SEP]")
"""Usual names of the tokens that begin and end a text, for files that do not say which do."""


def from_huggingface(file: str | Path, start_id: int | None = None) -> HuggingFace:
    """The tokenizer of a Hugging Face `tokenizer.json`, with the ids that `tokenizers` gives.

    A text starts with the token that the files beside it (`tokenizer_config.json`, `special_tokens_map.json` and
    `config.json`) name as the beginning of a sequence, or else that its own post-processor puts first, or else one of a
    usual name. If there is none, it is the token that ends a text, which is found likewise. If there is none either, a
    piece is added.

    Args:
        file: the path of the file, or of the folder that it is in.
        start_id: another token to start texts with.

    Raises:
        UserError: the file cannot be read, is not JSON, has no vocabulary, or has no such token.
    """
    path = Path(file).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return from_bytes(path.read_bytes(), path.parent, start_id)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; give a tokenizer.json") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_bytes(content: bytes, folder: Path, start_id: int | None = None) -> HuggingFace:
    """The tokenizer of the contents of a tokenizer.json, which lies in `folder`; see `from_huggingface`."""
    check_encoding(content, "it")
    try:
        description = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text; give a tokenizer.json of Hugging Face's tokenizers") from error
    read(description)  # raises for what is not a description at all
    value = json.loads(description)
    if value.get("truncation") or value.get("padding"):
        description = json.dumps({**value, "truncation": None, "padding": None}, ensure_ascii=False)
    return HuggingFace(description, _special_ids(description, folder, start_id))


def summary(tokenizer: HuggingFace) -> str:
    """Which tokens begin and end texts, for the user."""
    start, ends = tokenizer.special.start, tokenizer.special.text_ends
    named = [f"{tokenizer.piece(token)} ({token})" for token in (start, *ends)]
    begins = f"texts start with {named[0]}"
    if tokenizer.adds_start:
        begins += ", which is added since the file names no token for it"
    return f"{len(tokenizer):,} pieces; {begins}" + (f" and end with {named[1]}" if ends else "")


def _special_ids(description: str, folder: Path, start_id: int | None) -> SpecialIds:
    tokenizer, value = read(description), json.loads(description)
    vocabulary = pieces(tokenizer)
    ids = {piece: token for token, piece in enumerate(vocabulary)}
    first, last = _of_post_processor(value.get("post_processor"))
    beside = _named_beside(folder)

    def find(name: str, *others: Any) -> int | None:
        for found in (*beside.get(name, ()), *others):
            token = ids.get(found) if isinstance(found, str) else found
            if isinstance(token, int) and 0 <= token < len(vocabulary):
                return token
        return None

    end = find("eos", last, *_ENDS)
    start = find("bos", first, *_STARTS) if start_id is None else start_id
    if start is None:
        start = len(vocabulary) if end is None else end
    elif not 0 <= start < len(vocabulary) and start_id is not None:
        raise UserError(
            f"--tokenizer.start-id {start_id}: its ids go from 0 to {len(vocabulary) - 1:,}; give one of them"
        )
    unknown = ids.get(value["model"].get("unk_token"), value["model"].get("unk_id"))
    special = {one["id"] for one in value.get("added_tokens") or [] if one.get("special")} - {unknown}
    missing = {token for token, piece in enumerate(vocabulary) if piece is None}
    return SpecialIds(
        start=start,
        line_end=start if end is None else end,
        text_ends=() if end in (None, start) else (end,),
        controls=tuple(sorted(special | missing)),
        unknown=None if unknown in (start, end) else unknown,
    )


def _of_post_processor(value: Any) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts first and last in a text."""
    if not isinstance(value, dict):
        return None, None
    if value.get("type") == "Sequence":
        found = [_of_post_processor(one) for one in value["processors"]]
        return next((f for f, _ in found if f), None), next((last for _, last in found if last), None)
    if value.get("type") in ("BertProcessing", "RobertaProcessing"):
        return value["cls"][0], value["sep"][0]
    single = [next(iter(one.items())) for one in value.get("single") or []]
    tokens = [one["id"] if kind == "SpecialToken" else None for kind, one in single]
    return (tokens[0], tokens[-1]) if tokens else (None, None)


def _named_beside(folder: Path) -> Mapping[str, list[Any]]:
    """The tokens, or their ids, that the files beside a tokenizer.json name as `bos` and `eos`."""
    found: dict[str, list[Any]] = {"bos": [], "eos": []}
    for file in ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"):
        settings = _settings(folder / file)
        for name, tokens in found.items():
            tokens += _tokens(settings.get(f"{name}_token")) or _tokens(settings.get(f"{name}_token_id"))
    return found


def _settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _tokens(value: Any) -> list[Any]:
    """A token as a string, as an object with its `content`, as an id, or several of them."""
    return list(_flat(value if isinstance(value, list) else [value]))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str | int) and not isinstance(token, bool):
            yield token
