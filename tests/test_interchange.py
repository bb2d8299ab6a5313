"""Hugging Face's models against Transformers, which runs the same folders."""

import copy
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra huggingface is not installed")
pytest.importorskip("transformers", reason="the extra huggingface is not installed")

import safetensors.numpy
import torch
import transformers

from minigpt_jax import model
from minigpt_jax.errors import UserError
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
    tokens = np.random.default_rng(0).integers(0, V, (2, T))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.3
    logits = model.logits(model.build(experiment), params, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def changed_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value != "missing"}))


def test_the_readme_lists_the_architectures() -> None:
    text = " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
    [listed] = re.findall(r"The architectures are (.*?)\.", text)
    names = {name.lower().replace("-", "") for name in re.split(", | and ", listed)}
    assert names == set(ARCHITECTURES) - {"minigpt"}  # that of exported folders with a class of their own


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "rope_parameters.rope_type is linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "rope_scaling.rope_type is dynamic": (
        "llama",
        {"rope_parameters": "missing", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    "rope_parameters.rope_type is llama3": ("apertus, relu2", {"rope_parameters": "missing"}),
    "partial_rotary_factor is 0.25": ("stablelm", {"rope_parameters": {"rope_type": "default"}}),
    "partial_rotary_factor is 0.5": ("stablelm", {"rope_parameters": "missing", "partial_rotary_factor": 0.5}),
    "hidden_act is xielu": ("apertus, relu2", {"hidden_act": "xielu"}),
    "hidden_act is gelu": ("llama", {"hidden_act": "gelu"}),
    "activation_function is quick_gelu": ("gpt2", {"activation_function": "quick_gelu"}),
    "sliding_window is 16": ("starcoder2", {"sliding_window": 16}),
    "use_sliding_window is True": ("qwen2", {"use_sliding_window": True}),
    "layer_types is": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
    "attention_bias is True": ("llama", {"attention_bias": True}),
    "mlp_bias is True": ("arcee", {"mlp_bias": True}),
    "use_parallel_residual is True": ("stablelm", {"use_parallel_residual": True}),
    "qk_layernorm is True": ("stablelm", {"qk_layernorm": True}),
    "scale_attn_by_inverse_layer_idx is True": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "word_embed_proj_dim is 16": ("opt", {"word_embed_proj_dim": 16}),
    "layer_norm_elementwise_affine is False": ("opt", {"layer_norm_elementwise_affine": False}),
    "layer_types is 5": ("qwen3", {"layer_types": 5}),
    "model_type is ['x']": ("llama", {"model_type": ["x"]}),
    "model_type is mamba": ("llama", {"model_type": "mamba"}),
    "quantization_config is set": ("llama", {"quantization_config": {"quant_method": "gptq"}}),
    "no hidden_size": ("llama", {"hidden_size": "missing"}),
    "--model.num-heads four": ("llama", {"num_attention_heads": "four"}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_no_model_config_says_is_refused_by_name(words: str, tmp_path: Path) -> None:
    name, changes = REFUSED[words]
    case(name).config.save_pretrained(tmp_path)
    huggingface.read_experiment(tmp_path)
    changed_config(tmp_path, **changes)
    with pytest.raises(UserError) as refused:
        huggingface.read_experiment(tmp_path)
    assert words in str(refused.value)
    assert str(tmp_path / "config.json") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_older_names_of_settings_are_read(tmp_path: Path) -> None:
    case("stablelm").config.save_pretrained(tmp_path)
    changed_config(tmp_path, rope_parameters="missing", rope_theta=500.0, partial_rotary_factor=1.0)
    assert huggingface.read_experiment(tmp_path).model.rope_theta == 500.0


def saved(folder: Path, name: str = "llama", **options: Any) -> Path:
    case(name).save_pretrained(folder, **options)
    return folder


def assert_same_weights(params: Any, name: str, folder: Path) -> None:
    saved(folder, name)
    expected = huggingface.read_weights(folder, huggingface.read_experiment(folder))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_sharded_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    params = huggingface.read_weights(folder, huggingface.read_experiment(folder))
    assert_same_weights(params, "llama", tmp_path / "whole")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        huggingface.read_weights(folder, huggingface.read_experiment(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types_of_weights(tmp_path: Path, dtype: Any) -> None:
    theirs = copy.deepcopy(case("llama")).to(dtype)
    theirs.save_pretrained(tmp_path)
    params = huggingface.read_weights(tmp_path, huggingface.read_experiment(tmp_path))
    expected = theirs.model.layers[1].mlp.up_proj.weight.float().detach().numpy().T
    got = params["block_1"]["feed_forward"]["up"]["kernel"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_names_without_a_prefix(tmp_path: Path) -> None:
    """As in the folder of the first GPT-2, with its buffers."""
    theirs = case("gpt2").transformer
    theirs.save_pretrained(tmp_path)
    changed_config(tmp_path, architectures=["GPT2LMHeadModel"])
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in tensors
    tensors["h.0.attn.bias"] = np.ones((1, 1, T, T), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    params = huggingface.read_weights(tmp_path, huggingface.read_experiment(tmp_path))
    assert_same_weights(params, "gpt2", tmp_path / "whole")


def test_an_index_may_name_files_of_its_folder_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sharded", max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    [first, *_] = sorted(folder.glob("*.safetensors"))
    first.rename(tmp_path / first.name)
    index.write_text(index.read_text().replace(first.name, f"../{first.name}"))
    with pytest.raises(UserError, match=f"names ../{first.name}, which is no file of this folder"):
        huggingface.read_weights(folder, huggingface.read_experiment(folder))


def damage_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8] + b"[" + path.read_bytes()[9:])


def damage_a_shape(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])
    safetensors.numpy.save_file(tensors, path)


def with_a_stranger(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({**tensors, "score.weight": np.ones((2, 32), np.float32)}, path)


def without_a_tensor(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    del tensors["model.norm.weight"]
    safetensors.numpy.save_file(tensors, path)


def with_integers(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    name = "model.norm.weight"
    safetensors.numpy.save_file({**tensors, name: tensors[name].astype(np.int8)}, path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "has no model.safetensors": lambda path: path.unlink(),
    "pytorch_model.bin, a pickle": lambda path: path.rename(path.parent / "pytorch_model.bin"),
    "ends at": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "fewer than its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "has 0 bytes": lambda path: path.write_bytes(b""),
    "its header is malformed": damage_header,
    "up_proj.weight is 39×32, and by config.json it is 40×32": damage_a_shape,
    "score.weight has no place in a llama": with_a_stranger,
    "lack model.norm.weight": without_a_tensor,
    "is of type I8": with_integers,
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damaged_weights_are_refused(words: str, tmp_path: Path) -> None:
    DAMAGES[words](saved(tmp_path) / "model.safetensors")
    with pytest.raises(UserError) as refused:
        huggingface.read_weights(tmp_path, huggingface.read_experiment(tmp_path))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
