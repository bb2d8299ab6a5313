"""The architectures of Hugging Face that a `ModelConfig` can describe."""

import dataclasses
from collections.abc import Iterator, Mapping

from minigpt_jax.interchange.mapping import Architecture, Fixed, Setting, Tensor


def _linear(name: str, *paths: str, transposed: bool = True) -> Iterator[Tensor]:
    """A dense layer. PyTorch's Linear has the transpose of the kernel."""
    yield Tensor(f"{name}.weight", tuple(f"{path}.kernel" for path in paths), transposed)
    yield Tensor(f"{name}.bias", tuple(f"{path}.bias" for path in paths))


def _conv1d(name: str, *paths: str) -> Iterator[Tensor]:
    """A dense layer that GPT-2 calls Conv1D, which has the kernel itself."""
    return _linear(name, *paths, transposed=False)


def _norm(name: str, path: str) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (f"{path}.scale",))
    yield Tensor(f"{name}.bias", (f"{path}.bias",))


def _embedding(name: str, path: str, extra_rows: int = 0) -> Tensor:
    return Tensor(f"{name}.weight", (f"{path}.embedding",), extra_rows=extra_rows)


def _block(name: str, norms: Mapping[str, str], layers: Mapping[str, str]) -> Iterator[Tensor]:
    """The norms and dense layers of a block, by their names and their paths in the block."""
    for theirs, ours in norms.items():
        yield from _norm(f"{name}.{theirs}", f"block_{{i}}.{ours}")
    for theirs, ours in layers.items():
        yield from _linear(f"{name}.{theirs}", f"block_{{i}}.{ours}")


def _llama_tensors(attention_norm: str, feed_forward_norm: str, feed_forward: Mapping[str, str]) -> tuple[Tensor, ...]:
    """The tensors of Llama and its relatives. A model has those whose arrays are in its parameter tree."""
    return (
        _embedding("embed_tokens", "token_embedding"),
        *_block(
            "layers.{i}",
            {
                attention_norm: "attention_norm",
                feed_forward_norm: "feed_forward_norm",
                "self_attn.q_norm": "attention.query_norm",
                "self_attn.k_norm": "attention.key_norm",
            },
            {
                "self_attn.q_proj": "attention.query",
                "self_attn.k_proj": "attention.key",
                "self_attn.v_proj": "attention.value",
                "self_attn.o_proj": "attention.out",
                **{f"mlp.{theirs}": f"feed_forward.{ours}" for theirs, ours in feed_forward.items()},
            },
        ),
        *_norm("norm", "final_norm"),
    )


_NOT_GATED = {"relu": "relu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu": "gelu_erf", "relu2": "relu2"}
_GATED = {"silu": "swiglu", "swish": "swiglu"}
_LLAMA_SIZES = (
    Setting("vocabulary_size", "vocab_size"),
    Setting("sequence_length", "max_position_embeddings"),
    Setting("num_layers", "num_hidden_layers"),
    Setting("width", "hidden_size"),
    Setting("num_heads", "num_attention_heads"),
    Setting("num_kv_heads", "num_key_value_heads", None),
    Setting("head_width", "head_dim", None),
    Setting("feed_forward", "intermediate_size"),
)
_TIED, _UNTIED = (Setting("tied_embeddings", "tie_word_embeddings", default) for default in (True, False))
_RMS_EPSILON = Setting("norm_epsilon", "rms_norm_eps", 1e-6)
_FULL_ATTENTION = Fixed("use_sliding_window", False, (False,))
_NO_BIASES = (Fixed("attention_bias", False, (False,)), Fixed("mlp_bias", False, (False,)))
_UP_AND_DOWN = {"up_proj": "up", "down_proj": "down"}
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")

LLAMA = Architecture(
    "llama",
    "LlamaForCausalLM",
    {"norm_position": "pre", "norm": "rmsnorm", "positions": "rope", "use_bias": False},
    (*_LLAMA_SIZES, _RMS_EPSILON, _UNTIED, Setting("activation", "hidden_act", "silu", _GATED)),
    "model.",
    _llama_tensors(*_LLAMA_NORMS, {"gate_proj": "gate", **_UP_AND_DOWN}),
    _NO_BIASES,
    rope={},
)
QWEN2 = dataclasses.replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    form={**LLAMA.form, "qkv_bias": True},
    fixed=(_FULL_ATTENTION,),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    form={**LLAMA.form, "qk_norm": True},
    settings=tuple(one._replace(default=128) if one.key == "head_dim" else one for one in LLAMA.settings),
    fixed=(_FULL_ATTENTION, *_NO_BIASES),
)
ARCEE = dataclasses.replace(
    LLAMA,
    model_type="arcee",
    class_name="ArceeForCausalLM",
    settings=(
        *_LLAMA_SIZES,
        _RMS_EPSILON._replace(default=1e-5),
        _UNTIED,
        Setting("activation", "hidden_act", "relu2", _NOT_GATED),
    ),
    tensors=_llama_tensors(*_LLAMA_NORMS, _UP_AND_DOWN),
)
APERTUS = dataclasses.replace(
    ARCEE,
    model_type="apertus",
    class_name="ApertusForCausalLM",
    form={**LLAMA.form, "qk_norm": True},
    settings=tuple(one._replace(default="xielu") if one.key == "hidden_act" else one for one in ARCEE.settings),
    tensors=_llama_tensors("attention_layernorm", "feedforward_layernorm", _UP_AND_DOWN),
    rope={"rope_type": "llama3", "rope_theta": 12_000_000.0},
)
STABLELM = Architecture(
    "stablelm",
    "StableLmForCausalLM",
    {"norm_position": "pre", "norm": "layernorm", "positions": "rope", "use_bias": False, "norm_bias": True},
    (
        *_LLAMA_SIZES,
        Setting("norm_epsilon", "layer_norm_eps", 1e-5),
        _UNTIED,
        Setting("activation", "hidden_act", "silu", _GATED),
        Setting("qkv_bias", "use_qkv_bias", False),
    ),
    "model.",
    LLAMA.tensors,
    (Fixed("qk_layernorm", False, (False,)), Fixed("use_parallel_residual", False, (False,))),
    rope={"partial_rotary_factor": 0.25},
)
STARCODER2 = Architecture(
    "starcoder2",
    "Starcoder2ForCausalLM",
    {"norm_position": "pre", "norm": "layernorm", "positions": "rope", "norm_bias": True, "output_bias": False},
    (
        *_LLAMA_SIZES,
        Setting("norm_epsilon", "norm_epsilon", 1e-5),
        _TIED,
        Setting("activation", "hidden_act", "gelu_pytorch_tanh", _NOT_GATED),
        Setting("use_bias", "use_bias", True),
    ),
    "model.",
    _llama_tensors(*_LLAMA_NORMS, {"c_fc": "up", "c_proj": "down"}),
    (Fixed("sliding_window", None, (None,)),),
    rope={},
)
GPT2 = Architecture(
    "gpt2",
    "GPT2LMHeadModel",
    {"norm_position": "pre", "norm": "layernorm", "positions": "learned", "output_bias": False},
    (
        Setting("vocabulary_size", "vocab_size"),
        Setting("sequence_length", "n_positions"),
        Setting("num_layers", "n_layer"),
        Setting("width", "n_embd"),
        Setting("num_heads", "n_head"),
        Setting("feed_forward", "n_inner", None),
        Setting("norm_epsilon", "layer_norm_epsilon", 1e-5),
        Setting("activation", "activation_function", "gelu_new", {"gelu_new": "gelu", **_NOT_GATED}),
        _TIED,
    ),
    "transformer.",
    (
        _embedding("wte", "token_embedding"),
        _embedding("wpe", "position_embedding"),
        *_norm("h.{i}.ln_1", "block_{i}.attention_norm"),
        *_conv1d("h.{i}.attn.c_attn", *(f"block_{{i}}.attention.{part}" for part in ("query", "key", "value"))),
        *_conv1d("h.{i}.attn.c_proj", "block_{i}.attention.out"),
        *_norm("h.{i}.ln_2", "block_{i}.feed_forward_norm"),
        *_conv1d("h.{i}.mlp.c_fc", "block_{i}.feed_forward.up"),
        *_conv1d("h.{i}.mlp.c_proj", "block_{i}.feed_forward.down"),
        *_norm("ln_f", "final_norm"),
    ),
    (
        Fixed("scale_attn_weights", True, (True,)),
        Fixed("scale_attn_by_inverse_layer_idx", False, (False,)),
        Fixed("add_cross_attention", False, (False,)),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
OPT = Architecture(
    "opt",
    "OPTForCausalLM",
    {"norm": "layernorm", "norm_epsilon": 1e-5, "norm_bias": True, "positions": "learned", "output_bias": False},
    (
        Setting("vocabulary_size", "vocab_size"),
        Setting("sequence_length", "max_position_embeddings"),
        Setting("num_layers", "num_hidden_layers"),
        Setting("width", "hidden_size"),
        Setting("num_heads", "num_attention_heads"),
        Setting("feed_forward", "ffn_dim"),
        Setting("norm_position", "do_layer_norm_before", True, {True: "pre", False: "post"}),
        Setting("activation", "activation_function", "relu", _NOT_GATED),
        Setting("use_bias", "enable_bias", True),
        _TIED,
    ),
    "model.",
    (
        _embedding("decoder.embed_tokens", "token_embedding"),
        _embedding("decoder.embed_positions", "position_embedding", extra_rows=2),
        *_block(
            "decoder.layers.{i}",
            {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "feed_forward_norm"},
            {
                "self_attn.q_proj": "attention.query",
                "self_attn.k_proj": "attention.key",
                "self_attn.v_proj": "attention.value",
                "self_attn.out_proj": "attention.out",
                "fc1": "feed_forward.up",
                "fc2": "feed_forward.down",
            },
        ),
        *_norm("decoder.final_layer_norm", "final_norm"),
    ),
    (
        Fixed("layer_norm_elementwise_affine", True, (True,)),
        Fixed("_remove_final_layer_norm", False, (False,)),
    ),
    (("word_embed_proj_dim", "hidden_size"),),
)
STOCK = (GPT2, LLAMA, QWEN2, QWEN3, ARCEE, APERTUS, STABLELM, STARCODER2, OPT)
"""The architectures that Transformers has a class for."""
_POINTER_LAYERS = ("query", "key", "sentinel")
MINIGPT = Architecture(
    "minigpt",
    "MiniGPTForCausalLM",
    {},
    (
        *(one for one in _LLAMA_SIZES if one.field not in ("num_kv_heads", "head_width")),
        Setting("num_kv_heads", "num_key_value_heads"),
        Setting("head_width", "head_dim"),
        _UNTIED,
        *(
            Setting(name, name)
            for name in (
                *("activation", "norm", "norm_position", "norm_epsilon", "positions", "rope_theta", "use_bias"),
                *("qkv_bias", "norm_bias", "output_bias", "qk_norm", "head_gate", "embedding_norm", "convolution"),
                *("pointer", "repeats", "logit_softcap"),
            )
        ),
    ),
    "",
    (
        _embedding("token_embedding", "token_embedding"),
        _embedding("position_embedding", "position_embedding"),
        *_block(
            "blocks.{i}",
            {
                "attention_norm": "attention_norm",
                "feed_forward_norm": "feed_forward_norm",
                "attention.query_norm": "attention.query_norm",
                "attention.key_norm": "attention.key_norm",
            },
            {
                layer: layer
                for layer in (
                    *(f"attention.{part}" for part in ("query", "key", "value", "gate", "out")),
                    *(f"feed_forward.{part}" for part in ("up", "gate", "down")),
                )
            },
        ),
        *(
            Tensor(f"blocks.{{i}}.{branch}_convolution.taps", (f"block_{{i}}.{branch}_convolution.taps",))
            for branch in ("attention", "feed_forward")
        ),
        *_norm("final_norm", "final_norm"),
        Tensor("lm_head.bias", ("output.bias",)),
        Tensor("output_bias", ("output_bias",)),
        *(tensor for layer in _POINTER_LAYERS for tensor in _linear(f"pointer.{layer}", f"pointer.{layer}")),
        *(tensor for layer in ("query_norm", "key_norm") for tensor in _norm(f"pointer.{layer}", f"pointer.{layer}")),
        Tensor("pointer.sentinel_bias", ("pointer.sentinel_bias",)),
    ),
)
"""Every `ModelConfig`, in a class whose code an exported folder carries."""
ARCHITECTURES = {one.model_type: one for one in (*STOCK, MINIGPT)}
"""By the `model_type` of config.json."""
