"""Models that llama.cpp has an architecture for, with weights that leave nothing at its neutral value."""

import string
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from minigpt_jax import model
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.generate import LanguageModel
from minigpt_jax.tokenizer import Tokenizer, WordPiece

PIECES = ["[PAD]", "[UNK]", "[BOS]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), ".", "the"]
V, T = 61, 20
PRE = ModelConfig(num_layers=2, width=16, num_heads=4, feed_forward=24, norm_position="pre")
ROTARY = replace(PRE, norm="rmsnorm", positions="rope", use_bias=False)
LAYER_NORM = replace(ROTARY, norm="layernorm")
WIDE = {"head_width": 6, "num_kv_heads": 2}
MODELS: dict[str, tuple[str, ModelConfig]] = {
    "gpt2": ("gpt2", replace(PRE, activation="gelu", tied_embeddings=True, output_bias=False)),
    "gpt2, no biases, grouped heads, two passes": (
        "gpt2",
        replace(PRE, activation="gelu", use_bias=False, num_kv_heads=2, repeats=2),
    ),
    "llama": ("llama", replace(ROTARY, activation="swiglu", rope_theta=100.0)),
    "llama, tied, wide and grouped heads": (
        "llama",
        replace(ROTARY, activation="swiglu", tied_embeddings=True, **WIDE),
    ),
    "llama, biases": ("llama", replace(ROTARY, activation="swiglu", use_bias=True, output_bias=False, **WIDE)),
    "qwen2": ("qwen2", replace(ROTARY, activation="swiglu", qkv_bias=True, num_kv_heads=2)),
    "qwen3": ("qwen3", replace(ROTARY, activation="swiglu", qk_norm=True, norm_epsilon=0.1, **WIDE)),
    "arcee": ("arcee", replace(ROTARY, activation="relu2", **WIDE)),
    "arcee, norm of a tied embedding": (
        "arcee",
        replace(ROTARY, activation="relu2", tied_embeddings=True, embedding_norm=True),
    ),
    "apertus": ("apertus", replace(ROTARY, activation="relu2", qk_norm=True, tied_embeddings=True, **WIDE)),
    "stablelm": ("stablelm", replace(LAYER_NORM, activation="swiglu", qkv_bias=True, norm_bias=True)),
    "stablelm, no biases, tied": ("stablelm", replace(LAYER_NORM, activation="swiglu", tied_embeddings=True)),
    "starcoder2": ("starcoder2", replace(LAYER_NORM, activation="gelu", use_bias=True, output_bias=False)),
    "starcoder2, no biases": ("starcoder2", replace(LAYER_NORM, activation="gelu", num_kv_heads=1)),
    "nemotron": ("nemotron", replace(LAYER_NORM, activation="relu2", use_bias=True, output_bias=False)),
    "nemotron, no biases, tied": ("nemotron", replace(LAYER_NORM, activation="relu2", tied_embeddings=True)),
}
"""The name of the architecture, and the model."""


def language_model(config: ModelConfig, pieces: Tokenizer | None = None, layout: Any = "packed") -> LanguageModel:
    """A model with random weights; without a tokenizer of its own it has one of 57 pieces for its 61 rows."""
    pieces = pieces or WordPiece(PIECES)
    rows = len(pieces) + V - len(PIECES)
    experiment = Experiment(
        "random",
        data=DataConfig(layout=layout, sequence_length=T),
        tokenizer=TokenizerConfig(vocabulary_size=rows),
        model=config,
    )
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre, spread = (1.0, 0.3) if path[-1].key == "scale" else (0.0, 0.4)
        return rng.normal(centre, spread, leaf.shape).astype(np.float32)

    weights = jax.tree_util.tree_map_with_path(draw, model.parameter_shapes(experiment))
    return LanguageModel(experiment, pieces, weights, step=3)
