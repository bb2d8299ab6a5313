"""Hugging Face tokenizer.json files of the usual forms, trained on the spot."""

import functools
import json
from pathlib import Path
from typing import Any

from corpus_files import tales
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ODD = [
    "",
    "  two  spaces \t\n",
    "x <|endoftext|> y [CLS] a [SEP] [MASK] </s> <s> [BOS] [PAD] [UNK]",
    "a\u00a0b é🙂 e\u0301 ﬁ ½ 中文 \0 \u200b \u2581 K",
    "broken \ud800 surrogate",
    "don't 1984's\r\n\r\n(unbelievable!)",
]


def _gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        tales(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        tales(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _t5() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(tales(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _llama() -> Tokenizer:
    """BPE with bytes for what has no piece, and spaces as ▁."""
    special = ["<unk>", "<s>", "</s>"]
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    found.train_from_iterator(
        tales(), trainers.BpeTrainer(vocab_size=200, special_tokens=special, max_token_length=8, show_progress=False)
    )
    model = json.loads(found.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


MAKERS = {"gpt2": _gpt2, "bert": _bert, "t5": _t5, "llama": _llama}


@functools.cache
def description(form: str) -> str:
    """The contents of the tokenizer.json of a form."""
    return MAKERS[form]().to_str()


def write(folder: Path, form: str, **beside: Any) -> Path:
    """Writes a form's tokenizer.json, and files beside it by the stems of their names. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(description(form), encoding="utf-8")
    for name, value in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return path
