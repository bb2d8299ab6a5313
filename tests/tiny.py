"""Tiny models, one for each option, with weights that leave nothing at its neutral value."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.config import BOS_ID, ModelConfig
from minigpt_jax.model import GPT

V, T = 23, 12
TINY = ModelConfig(num_layers=1, width=16, num_heads=3, feed_forward=24)  # heads of 5: 16 // 3, as 85 = 256 // 3
TWO_LAYERS = replace(TINY, num_layers=2)
EVEN = replace(TINY, num_heads=4)
EVERYTHING = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    feed_forward=24,
    activation="swiglu",
    norm="rmsnorm",
    norm_position="pre",
    positions="rope",
    use_bias=False,
    tied_embeddings=True,
    qk_norm=True,
    head_gate=True,
    convolution=3,
    pointer=6,
    logit_softcap=2.0,
)
CONFIGS = {
    "reference": TWO_LAYERS,
    "pre-norm": replace(TINY, norm_position="pre"),
    "rmsnorm": replace(TINY, norm="rmsnorm", norm_epsilon=0.1),
    "rope": replace(EVEN, positions="rope", rope_theta=100.0),
    "gelu": replace(TINY, activation="gelu"),
    "gelu by erf": replace(TINY, activation="gelu_erf"),
    "relu2": replace(TINY, activation="relu2"),
    "swiglu": replace(TINY, activation="swiglu"),
    "no bias": replace(TINY, use_bias=False),
    "biases of queries, keys and values": replace(TINY, use_bias=False, qkv_bias=True),
    "biases of norms": replace(TINY, use_bias=False, norm_bias=True),
    "tied, no output bias": replace(TINY, tied_embeddings=True, output_bias=False),
    "tied": replace(TINY, tied_embeddings=True),
    "qk-norm": replace(TINY, qk_norm=True),
    "head gate": replace(TINY, head_gate=True),
    "grouped heads": replace(EVEN, num_kv_heads=2),
    "wide heads": replace(EVEN, head_width=6, num_kv_heads=2, positions="rope"),
    "embedding norm": replace(TINY, embedding_norm=True),
    "factorised embedding": replace(TINY, embedding_width=5),
    "convolution": replace(TWO_LAYERS, convolution=4),
    "pointer": replace(TWO_LAYERS, pointer=8),
    "two passes": replace(TWO_LAYERS, repeats=2),
    "soft-cap": replace(TINY, logit_softcap=1.5),
    "mup, tied": replace(TINY, tied_embeddings=True, parametrization="mup", base_width=4, feed_forward=None),
    "everything": EVERYTHING,
    "everything, factorised embedding": replace(EVERYTHING, embedding_width=5, embedding_norm=True),
}

LENGTHS = np.array([12, 3, 7, 1])
RAGGED = np.where(
    np.arange(T) < LENGTHS[:, None], np.random.default_rng(0).integers(3, V, (len(LENGTHS), T)), 0
)  # right-padded rows of ids


@functools.cache
def gpt(config: ModelConfig, dtype: Any = jnp.float32) -> GPT:
    return GPT(config, vocabulary_size=V, sequence_length=T, dtype=dtype, start_id=BOS_ID)


@functools.cache
def weights(config: ModelConfig) -> Any:
    """Parameters with nothing at its neutral value: no bias is 0, no scale is 1."""
    shapes = jax.eval_shape(gpt(config).init, jax.random.key(0), jnp.zeros((1, T), jnp.int32))["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre, spread = (1.0, 0.3) if path[-1].key == "scale" else (0.0, 0.4)
        return rng.normal(centre, spread, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def apply(module: GPT, params: Any, *inputs: Any, **options: Any) -> Any:
    return module.apply({"params": params}, *inputs, **options)


full_pass = jax.jit(apply, static_argnums=0)


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def prefill(module: GPT, params: Any, tokens: Any, length: Any, slots: int) -> Any:
    return apply(module, params, tokens, length, slots, method=GPT.prefill)


@functools.partial(jax.jit, static_argnums=0)
def step(module: GPT, params: Any, tokens: Any, cache: Any, position: Any) -> Any:
    return apply(module, params, tokens, cache, position, method=GPT.step)
