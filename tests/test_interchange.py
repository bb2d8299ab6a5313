"""Hugging Face's models against Transformers, which runs the same folders."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra huggingface is not installed")
pytest.importorskip("transformers", reason="the extra huggingface is not installed")

import torch
import transformers
from quick import optimisations

from minigpt_jax import model
from minigpt_jax.interchange import huggingface
from minigpt_jax.interchange.architectures import ARCHITECTURES

V, T = 61, 24
SIZES = {
    "vocab_size": V,
    "max_position_embeddings": T,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2_SIZES = {"vocab_size": V, "n_positions": T, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPT_SIZES = {**SIZES, "ffn_dim": 40, "word_embed_proj_dim": 32}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2_SIZES),
    "gpt2, relu, narrow, untied": (
        "gpt2",
        {**GPT2_SIZES, "activation_function": "relu", "n_inner": 24, "tie_word_embeddings": False},
    ),
    "gpt2, exact gelu": ("gpt2", {**GPT2_SIZES, "activation_function": "gelu", "layer_norm_epsilon": 0.1}),
    "llama": ("llama", {**SIZES, "rope_parameters": ROPE}),
    "llama, tied, wide heads": ("llama", {**SIZES, "tie_word_embeddings": True, "head_dim": 10, "rms_norm_eps": 0.1}),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "arcee": ("arcee", SIZES),
    "apertus, relu2": ("apertus", {**SIZES, "hidden_act": "relu2", "rope_parameters": ROPE}),
    "apertus, gelu": ("apertus", {**SIZES, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": ROPE}),
    "stablelm": ("stablelm", {**SIZES, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}),
    "stablelm, biases of queries, keys and values": (
        "stablelm",
        {**SIZES, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}, "use_qkv_bias": True},
    ),
    "starcoder2": ("starcoder2", SIZES),
    "starcoder2, no biases": ("starcoder2", {**SIZES, "use_bias": False, "tie_word_embeddings": False}),
    "opt": ("opt", OPT_SIZES),
    "opt, no biases": ("opt", {**OPT_SIZES, "enable_bias": False, "tie_word_embeddings": False}),
    "opt, post-norm": ("opt", {**OPT_SIZES, "do_layer_norm_before": False, "activation_function": "gelu"}),
}


def made(kind: str, settings: dict[str, Any]) -> Any:
    """A model of Transformers in which no scale is 1 and no bias is 0."""
    config = transformers.AutoConfig.for_model(kind, bos_token_id=1, eos_token_id=2, pad_token_id=None, **settings)
    torch.manual_seed(0)
    theirs = getattr(transformers, ARCHITECTURES[kind].class_name)(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            centre, spread = (1.0, 0.3) if "norm" in name or ".ln_" in name else (0.0, 0.3)
            parameter.normal_(0.0 if name.endswith("bias") else centre, spread)
    theirs.tie_weights()
    return theirs


@functools.cache
def case(name: str) -> Any:
    return made(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = case(name)
    theirs.save_pretrained(tmp_path)
    experiment = huggingface.read_experiment(tmp_path)
    params = huggingface.read_weights(tmp_path, experiment)
    tokens = np.random.default_rng(0).integers(1, V, (2, T))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.3
    with optimisations(False):
        logits = model.logits(model.build(experiment), params, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
