"""The form of a model that is sampled from: the same function, with its weights arranged for fast decode steps.

A decode step of few rows takes about as long as reading the weights once. In a small model each matmul is so short that
the overhead of starting it matters too.
"""

import dataclasses

import jax.numpy as jnp

from minigpt_jax.model import parametrization
from minigpt_jax.model.blocks import FUSED_QKV, QKV, Params
from minigpt_jax.model.gpt import GPT


def for_decoding(gpt: GPT, params: Params) -> tuple[GPT, Params]:
    """The model with an output layer of its own, and with one matrix for query, key and value in each block.

    These are copies: they take memory beside the given parameters. All other arrays are shared with them. A block of
    the user's own keeps its parameters.
    """
    gpt, params = _untied(gpt, params)
    return gpt, _fused(params) if gpt.config.block == "transformer" else params


def _untied(gpt: GPT, params: Params) -> tuple[GPT, Params]:
    """The same model with a separate output layer, if its output layer is the token embedding.

    A decode step reads the whole output layer for only a few rows. On CPU a matmul with a [D, V] kernel streams through
    memory, while one with the embedding, [V, D], takes several times as long.
    """
    if not gpt.config.tied_embeddings:
        return gpt, params
    rest = dict(params)
    scale = parametrization.logit_scale(gpt.config)
    output = {"kernel": jnp.multiply(scale, rest["token_embedding"]["embedding"].T)}
    if gpt.config.has_bias("output"):
        output["bias"] = rest.pop("output_bias")
    return gpt.clone(config=dataclasses.replace(gpt.config, tied_embeddings=False)), {**rest, "output": output}


def _fused(params: Params) -> Params:
    """The same parameters, with the projections `QKV` of each block side by side in one layer `FUSED_QKV`.

    On CPU the product of one row takes four fifths of the time of the three, and that of 32 rows three quarters.
    """
    blocks = {}
    for name, block in params.items():
        if not name.startswith("block_"):
            continue
        attention = dict(block["attention"])
        parts = [attention.pop(part) for part in QKV]
        attention[FUSED_QKV] = {leaf: jnp.concatenate([part[leaf] for part in parts], axis=-1) for leaf in parts[0]}
        blocks[name] = {**block, "attention": attention}
    return {**params, **blocks}
