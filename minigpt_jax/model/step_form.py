"""The form of a model that is sampled from: the same function, with weights in the arrangement that decode steps read.

A step of few rows takes about as long as reading the weights, and the matmuls of a small model so little that starting
each of them counts.
"""

import dataclasses

import jax.numpy as jnp

from minigpt_jax.model import parametrization
from minigpt_jax.model.blocks import JOINED, JOINED_PARTS, Params
from minigpt_jax.model.gpt import GPT


def stepped(gpt: GPT, params: Params) -> tuple[GPT, Params]:
    """The model with an output layer of its own, and with one matrix for the query, key and value of each block."""
    gpt, params = _untied(gpt, params)
    return gpt, _joined(params) if gpt.config.block == "transformer" else params


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


def _joined(params: Params) -> Params:
    """The same parameters, with the layers `JOINED_PARTS` of each block side by side in one layer `JOINED`.

    With the reference's model and one row, a step takes a twelfth less time.
    """
    blocks = {}
    for name, block in params.items():
        if not name.startswith("block_"):
            continue
        attention = dict(block["attention"])
        parts = [attention.pop(part) for part in JOINED_PARTS]
        attention[JOINED] = {leaf: jnp.concatenate([part[leaf] for part in parts], axis=-1) for leaf in parts[0]}
        blocks[name] = {**block, "attention": attention}
    return {**params, **blocks}
