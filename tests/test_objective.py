"""The figure that ranks experiments, and the caveats about it."""

from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax.config import Experiment
from minigpt_jax.report import objective

LINES = changed("data", layout="lines", min_bytes=64)


@pytest.mark.parametrize(
    ("fields", "figure"),
    [
        ((), "loss"),
        (("optimizer.learning_rate", "model.width", "seed"), "loss"),
        (("tokenizer.vocabulary_size",), "bits_per_byte"),
        (("model.width", "data.sequence_length"), "bits_per_byte"),
    ],
)
def test_bits_per_byte_rank_if_tokens_or_text_differ(fields: tuple[str, ...], figure: str):
    assert objective.figure_of(fields) == figure


@pytest.mark.parametrize(
    ("first", "section", "fields", "says"),
    [
        (EXPERIMENT, "tokenizer", {"vocabulary_size": 500}, None),
        (EXPERIMENT, "data", {"sequence_length": 64}, None),
        (EXPERIMENT, "data", {"layout": "lines", "evaluation_layout": "packed"}, None),
        (EXPERIMENT, "data", {"layout": "whole"}, None),  # all of the same text
        (EXPERIMENT, "data", {"stories_seed": 1}, "different texts"),
        (EXPERIMENT, "data", {"evaluation_layout": "lines"}, "different parts"),
        (LINES, "data", {"min_bytes": 128}, "different parts"),
        (LINES, "tokenizer", {"vocabulary_size": 500}, "as much of a text as fits"),
        (EXPERIMENT, "tokenizer", {"kind": "bpe"}, "WordPiece drops spacing"),
        (EXPERIMENT, "tokenizer", {"lowercase": False}, "WordPiece drops spacing"),
        (changed("tokenizer", kind="bpe"), "tokenizer", {"kind": "unigram"}, None),
    ],
)
def test_caveats(first: Experiment, section: str, fields: dict[str, Any], says: str | None):
    found = objective.caveats([first, changed(section, first, **fields)])
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_equal_corpora_at_different_paths_give_no_caveat():
    moved = [changed("data", archive=Path(name)) for name in ("a.zip", "b.zip")]
    assert objective.caveats(moved) != []
    assert objective.caveats(moved, same_corpus=True) == []
