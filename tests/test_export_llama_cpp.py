"""Exported GGUF files as llama.cpp runs them, against the models that they came from."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from test_export_gguf import with_byte_fallback
from test_export_tokenizer import KINDS, ODD, STORIES, trained  # noqa: F401  a fixture
from tiny_gguf import MODELS, T, V, language_model

from minigpt_jax import model
from minigpt_jax.benchmark import llama_cpp
from minigpt_jax.benchmark.llama_cpp import LlamaCpp
from minigpt_jax.interchange import gguf_writer
from minigpt_jax.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    llama_cpp.folder() is None,
    reason=f"node-llama-cpp is not installed; .ci/run does, or ${llama_cpp.VARIABLE} names it",
)
TOKENS = np.random.default_rng(0).integers(3, V, T)
GELU_TABLE = 2e-2
"""llama.cpp computes GELU from a table in float16."""


def exported(name: str, folder: Path, dtype: Any = "float32", **more: Any) -> tuple[Any, Path]:
    lm = language_model(MODELS[name][1], **more)
    assert gguf_writer.write(lm, folder / "model.gguf", dtype, "tiny").class_name == MODELS[name][0]
    return lm, folder / "model.gguf"


def our_logits(lm: Any) -> np.ndarray:
    return np.asarray(model.logits(lm.model, lm.weights, jnp.asarray(TOKENS[None])))[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    lm, file = exported(name, tmp_path)
    with LlamaCpp(file, exact=True) as theirs:
        found = theirs.logits(TOKENS.tolist())
    expected = our_logits(lm)
    assert expected.std() > 0.5
    tolerance = GELU_TABLE if MODELS[name][1].activation == "gelu" else 1e-4
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "apertus", "arcee"])
def test_logits_of_other_types(name: str, dtype: str, tmp_path: Path) -> None:
    lm, file = exported(name, tmp_path, dtype)
    with LlamaCpp(file) as theirs:
        np.testing.assert_allclose(theirs.logits(TOKENS.tolist()), our_logits(lm), atol=0.3, rtol=0.05)


@pytest.mark.parametrize(("name", "layout"), [("apertus", "packed"), ("llama", "lines")])
def test_greedy_texts(name: str, layout: str, tmp_path: Path) -> None:
    """Of several prompts at once, with the special ids and the window of the file."""
    lm, file = exported(name, tmp_path, layout=layout)
    prompts = ["the a", "", "b c . d"]
    special = lm.tokenizer.special
    never = [*special.banned, *range(len(lm.tokenizer), V)]
    ours = lm.generate(prompts, max_new_tokens=12)
    ids = [[special.start, *row] for row in lm.tokenizer.encode_batch(prompts)]
    with LlamaCpp(file, sequences=3) as theirs:
        about = theirs.about()
        texts = theirs.greedy(ids, 12, [token for token in never if token != lm.end_id]).tokens
    assert (about["bos"], about["eos"], about["window"]) == (special.start, lm.end_id, T)
    compared = 0
    for text, generation in zip(texts, ours, strict=True):
        until = text.index(lm.end_id) if lm.end_id in text else 12  # an end is never sampled here, unless asked for
        assert text[:until] == generation.tokens[:until]
        compared += until
    assert compared > 12


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts(kind: str, trained: dict[str, Tokenizer], tmp_path: Path) -> None:  # noqa: F811
    pieces = trained[kind]
    _, file = exported("apertus", tmp_path, pieces=pieces)
    texts = [*STORIES[:30], *(ODD if kind not in ("wordpiece", "unigram", "char") else [])]
    with LlamaCpp(file) as theirs:
        for text, ids in zip(texts, pieces.encode_batch(texts), strict=True):
            assert theirs.tokenize(text) == ids
        decoded = theirs.detokenize(pieces.encode_batch(["once upon a time"])[0])
    assert decoded.strip() == "once upon a time"


def test_unknown_characters(trained: dict[str, Tokenizer], tmp_path: Path) -> None:  # noqa: F811
    """As the lines say that the command prints."""
    text = "the 日本 fox"
    for kind, expected in {"unigram": 1, "char": 1, "wordpiece": 2}.items():
        (folder := tmp_path / kind).mkdir()
        _, file = exported("apertus", folder, pieces=trained[kind])
        with LlamaCpp(file) as theirs:
            assert theirs.tokenize(text).count(trained[kind].special.unknown) == expected


def test_ids_of_an_imported_tokenizer(tmp_path: Path) -> None:
    pieces = with_byte_fallback()
    _, file = exported("llama", tmp_path, pieces=pieces)
    texts = ["ab", "a b abab", "ba ab\n", "b\u2603 a"]
    with LlamaCpp(file) as theirs:
        for text, ids in zip(texts, pieces.encode_batch(texts), strict=True):
            assert theirs.tokenize(text) == ids
