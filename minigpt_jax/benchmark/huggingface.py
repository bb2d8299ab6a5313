"""Copies this project's weights into Hugging Face's GPT-2. A model configured as `GPT2_FORM` has the same form."""

from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt_jax.config import Experiment, ModelConfig

GPT2_FORM = ModelConfig(num_heads=4, norm_position="pre", activation="gelu", tied_embeddings=True)
"""The reference's size in GPT-2's form: pre-norm, GELU, tied embeddings, and heads that divide the width."""


def to_gpt2(experiment: Experiment, params: Any) -> GPT2LMHeadModel:
    """A GPT-2 with the weights of `minigpt_jax.model.GPT`, which gives the same logits.

    Args:
        experiment: an experiment whose model has GPT-2's form; its size may differ.
        params: the parameter tree. Its output bias has to be 0, as GPT-2 has none.
    """
    config = experiment.model
    form = (config.norm_position, config.activation, config.norm, config.positions, config.tied_embeddings)
    assert form == ("pre", "gelu", "layernorm", "learned", True), f"GPT-2 has another form than {form}"
    assert config.width % config.num_heads == 0, "GPT-2's heads divide the width"
    assert config.kv_heads == config.num_heads, "GPT-2 has a key-value head for each head"
    assert not np.any(params["output_bias"]), "GPT-2 has no output bias"
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=experiment.tokenizer.rows,
            n_positions=experiment.data.sequence_length,
            n_embd=config.width,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.feed_forward_width,
            layer_norm_epsilon=config.norm_epsilon,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    state = {
        "transformer.wte.weight": params["token_embedding"]["embedding"],
        "transformer.wpe.weight": params["position_embedding"]["embedding"],
        "lm_head.weight": params["token_embedding"]["embedding"],
        **_norm("transformer.ln_f", params["final_norm"]),
    }
    for i in range(config.num_layers):
        block, name = params[f"block_{i}"], f"transformer.h.{i}"
        attention, feed_forward = block["attention"], block["feed_forward"]
        queries_keys_values = [attention[part] for part in ("query", "key", "value")]
        state |= {
            **_norm(f"{name}.ln_1", block["attention_norm"]),
            **_norm(f"{name}.ln_2", block["feed_forward_norm"]),
            f"{name}.attn.c_attn.weight": np.concatenate([part["kernel"] for part in queries_keys_values], axis=1),
            f"{name}.attn.c_attn.bias": np.concatenate([part["bias"] for part in queries_keys_values]),
            **_dense(f"{name}.attn.c_proj", attention["out"]),
            **_dense(f"{name}.mlp.c_fc", feed_forward["up"]),
            **_dense(f"{name}.mlp.c_proj", feed_forward["down"]),
        }
    theirs.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in state.items()})
    return theirs.eval()


def _dense(name: str, layer: Any) -> dict[str, Any]:
    return {f"{name}.weight": layer["kernel"], f"{name}.bias": layer["bias"]}


def _norm(name: str, layer: Any) -> dict[str, Any]:
    return {f"{name}.weight": layer["scale"], f"{name}.bias": layer["bias"]}
