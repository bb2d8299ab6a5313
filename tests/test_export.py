"""Exported models against Transformers, which runs the same folders, and against the models that they came from."""

import dataclasses
import functools
import json
import string
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra huggingface is not installed")
pytest.importorskip("transformers", reason="the extra huggingface is not installed")

import torch
import transformers

from minigpt_jax import model
from minigpt_jax.config import BOS_ID, DataConfig, Experiment, ModelConfig, SampleConfig, TokenizerConfig
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange import huggingface
from minigpt_jax.interchange.export import write
from minigpt_jax.tokenizer import WordPiece

PIECES = ["[PAD]", "[UNK]", "[BOS]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), ".", "the"]
V, T = 61, 20
TOKENS = np.random.default_rng(0).integers(3, len(PIECES), (2, T))  # of one document
TOKENS[1] = np.tile(TOKENS[1, :5], T // 5)  # something to copy
BASE = ModelConfig(num_layers=2, width=16, num_heads=4, feed_forward=24)
PRE = dataclasses.replace(BASE, norm_position="pre")
ROTARY = dataclasses.replace(PRE, norm="rmsnorm", positions="rope", use_bias=False)
FACTORS: dict[str, list[Any]] = {
    "activation": ["relu", "gelu", "gelu_erf", "relu2", "swiglu"],
    "norm": ["layernorm", "rmsnorm"],
    "norm_position": ["post", "pre"],
    "positions": ["learned", "rope"],
    "use_bias": [True, False],
    "tied_embeddings": [False, True],
    "num_kv_heads": [None, 2, 1],
    "qk_norm": [False, True],
    "head_gate": [False, True],
    "embedding_norm": [False, True],
    "embedding_width": [None, 6],
    "convolution": [0, 1, 4],
    "pointer": [0, 6],
    "repeats": [1, 2],
    "logit_softcap": [None, 3.0],
    "head_width": [None, 6],
    "norm_epsilon": [1e-5, 0.1],
}


def covering() -> list[ModelConfig]:
    """Models in which every pair of settings occurs: of random ones, those that add the most pairs."""
    rng = np.random.default_rng(0)
    names = list(FACTORS)
    sizes = [len(FACTORS[name]) for name in names]
    missing = {
        (i, a, j, b)
        for i in range(len(names))
        for j in range(i)
        for a in range(sizes[i])
        for b in range(sizes[j])
    }  # fmt: skip
    rows = []
    while missing:
        i, a, j, b = min(missing)
        tried = rng.integers(0, sizes, (100, len(names)))
        tried[:, [i, j]] = a, b
        pairs = [
            {(i, row[i], j, row[j]) for i in range(len(row)) for j in range(i)} & missing for row in tried.tolist()
        ]
        best = max(range(len(pairs)), key=lambda n: len(pairs[n]))
        missing -= pairs[best]
        rows.append({name: FACTORS[name][n] for name, n in zip(names, tried[best], strict=True)})
    return [dataclasses.replace(BASE, **row) for row in rows]


MODELS = covering()


def language_model(config: ModelConfig, layout: str = "packed", window: int = T) -> LanguageModel:
    """A model in which no scale is 1 and no bias is 0."""
    experiment = Experiment(
        "random",
        data=DataConfig(layout=layout, sequence_length=window),  # type: ignore[arg-type]
        tokenizer=TokenizerConfig(vocabulary_size=V),
        model=config,
        sample=SampleConfig(k=5, temperature=0.7),
    )
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre, spread = (1.0, 0.3) if path[-1].key == "scale" else (0.0, 0.4)
        return rng.normal(centre, spread, leaf.shape).astype(np.float32)

    weights = jax.tree_util.tree_map_with_path(draw, model.parameter_shapes(experiment))
    return LanguageModel(experiment, WordPiece(PIECES), weights, step=3)


@functools.cache
def logits(config: ModelConfig) -> np.ndarray:
    lm = language_model(config)
    return np.asarray(model.logits(lm.model, lm.weights, jnp.asarray(TOKENS)))


def exported(lm: LanguageModel, folder: Path, dtype: Any = "float32") -> tuple[str, Any]:
    """The name of the class, and the model as Transformers loads it."""
    folder.mkdir()
    class_name = write(lm, folder, dtype, folder.name, []).class_name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(theirs).__name__ == class_name
    return class_name, theirs.eval()


def their_logits(theirs: Any, tokens: np.ndarray = TOKENS, **inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor(tokens), **inputs).logits.float().numpy()


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_logits_of_pairs_of_settings(number: int, tmp_path: Path) -> None:
    _, theirs = exported(language_model(MODELS[number]), tmp_path / "folder")
    expected = logits(MODELS[number])
    assert expected.std() > 0.1
    np.testing.assert_allclose(their_logits(theirs), expected, atol=1e-4, rtol=1e-5)


STOCK: dict[str, tuple[str, ModelConfig]] = {
    "gpt2": ("GPT2LMHeadModel", dataclasses.replace(PRE, tied_embeddings=True, output_bias=False)),
    "gpt2, without biases, grouped heads": (
        "GPT2LMHeadModel",
        dataclasses.replace(PRE, use_bias=False, num_kv_heads=2, activation="gelu"),
    ),
    "gpt2, two passes": ("GPT2LMHeadModel", dataclasses.replace(PRE, use_bias=False, repeats=2, activation="relu2")),
    "llama": ("LlamaForCausalLM", dataclasses.replace(ROTARY, activation="swiglu", rope_theta=100.0)),
    "llama, tied, wide and grouped heads": (
        "LlamaForCausalLM",
        dataclasses.replace(ROTARY, activation="swiglu", tied_embeddings=True, head_width=6, num_kv_heads=2),
    ),
    "llama, norm of a tied embedding": (
        "LlamaForCausalLM",
        dataclasses.replace(ROTARY, activation="swiglu", tied_embeddings=True, embedding_norm=True),
    ),
    "llama, norm of a factorised, tied embedding": (
        "LlamaForCausalLM",
        dataclasses.replace(ROTARY, activation="swiglu", tied_embeddings=True, embedding_norm=True, embedding_width=6),
    ),
    "qwen2": ("Qwen2ForCausalLM", dataclasses.replace(ROTARY, activation="swiglu", qkv_bias=True)),
    "qwen3": ("Qwen3ForCausalLM", dataclasses.replace(ROTARY, activation="swiglu", qk_norm=True, norm_epsilon=0.1)),
    "arcee": ("ArceeForCausalLM", dataclasses.replace(ROTARY, activation="relu2", embedding_norm=True)),
    "arcee, norm of the embedding with a large epsilon": (
        "ArceeForCausalLM",
        dataclasses.replace(ROTARY, activation="relu2", embedding_norm=True, norm_epsilon=0.1),
    ),
    "apertus": ("ApertusForCausalLM", dataclasses.replace(ROTARY, activation="gelu", qk_norm=True)),
    "apertus, relu2, two passes": (
        "ApertusForCausalLM",
        dataclasses.replace(ROTARY, activation="relu2", qk_norm=True, repeats=2, isolate_documents=True),
    ),
    "stablelm": (
        "StableLmForCausalLM",
        dataclasses.replace(ROTARY, norm="layernorm", activation="swiglu", num_kv_heads=1),
    ),
    "stablelm, biases": (
        "StableLmForCausalLM",
        dataclasses.replace(ROTARY, norm="layernorm", activation="swiglu", qkv_bias=True, norm_bias=True),
    ),
    "starcoder2": ("Starcoder2ForCausalLM", dataclasses.replace(ROTARY, norm="layernorm", activation="gelu_erf")),
    "starcoder2, biases": (
        "Starcoder2ForCausalLM",
        dataclasses.replace(PRE, positions="rope", output_bias=False, num_kv_heads=2),
    ),
    "opt": ("OPTForCausalLM", dataclasses.replace(BASE, output_bias=False, num_kv_heads=2, activation="gelu")),
    "opt, no biases": ("OPTForCausalLM", dataclasses.replace(BASE, use_bias=False, tied_embeddings=True)),
    "the tutorial's": ("MiniGPTForCausalLM", dataclasses.replace(BASE, num_heads=3)),
    "a norm after learned positions": (
        "MiniGPTForCausalLM",
        dataclasses.replace(PRE, use_bias=False, embedding_norm=True),
    ),
    "gpt2 with another width of heads": ("MiniGPTForCausalLM", dataclasses.replace(PRE, use_bias=False, head_width=6)),
    "opt with another epsilon": (
        "MiniGPTForCausalLM",
        dataclasses.replace(BASE, output_bias=False, norm_epsilon=1e-6),
    ),
    "gpt2, mup": (
        "GPT2LMHeadModel",
        dataclasses.replace(PRE, tied_embeddings=True, output_bias=False, parametrization="mup", base_width=4),
    ),
    "apertus, mup, feed-forward layers as wide as they are by default": (
        "ApertusForCausalLM",
        dataclasses.replace(ROTARY, activation="relu2", qk_norm=True, feed_forward=None, parametrization="mup"),
    ),
    "everything": (
        "MiniGPTForCausalLM",
        dataclasses.replace(
            ROTARY,
            activation="swiglu",
            tied_embeddings=True,
            output_bias=True,
            num_kv_heads=2,
            qk_norm=True,
            head_gate=True,
            embedding_norm=True,
            convolution=3,
            pointer=6,
            repeats=2,
            logit_softcap=3.0,
            parametrization="mup",
            base_width=4,
        ),
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_class_and_logits(name: str, tmp_path: Path) -> None:
    class_name, config = STOCK[name]
    found, theirs = exported(language_model(config), tmp_path / "folder")
    assert found == class_name
    np.testing.assert_allclose(their_logits(theirs), logits(config), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("gpt2, without biases, grouped heads", "packed"),
        ("apertus, relu2, two passes", "packed"),
        ("opt", "lines"),
        ("the tutorial's", "lines"),
        ("everything", "packed"),
        ("everything", "lines"),
    ],
)
def test_greedy_texts(name: str, layout: str, tmp_path: Path) -> None:
    """The exported generation config alone: the end, what is never sampled, the window."""
    lm = language_model(STOCK[name][1], layout)
    _, theirs = exported(lm, tmp_path / "folder")
    prompts = ["the a", "", "b c . d"]
    ours = lm.generate(prompts, max_new_tokens=12, stop=[lm.end_id])
    for prompt, generation in zip(prompts, ours, strict=True):
        ids = [BOS_ID, *lm.tokenizer.encode_batch([prompt])[0]]
        out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)
        assert out[0, len(ids) :].tolist() == generation.tokens


@pytest.mark.parametrize("number", range(0, len(MODELS), 3))
def test_way_back(number: int, tmp_path: Path) -> None:
    """The arrays of a model that fits no stock class come back as they were, unless its embedding was factorised."""
    lm = language_model(MODELS[number])
    done = write(lm, tmp_path, "float32", "folder", [])
    experiment = huggingface.read_experiment(tmp_path)
    back = huggingface.read_weights(tmp_path, experiment)
    if done.class_name == "MiniGPTForCausalLM" and not MODELS[number].embedding_width:
        jax.tree.map(np.testing.assert_array_equal, back, lm.weights)
    again = model.logits(model.build(experiment), back, jnp.asarray(TOKENS))
    np.testing.assert_allclose(again, logits(MODELS[number]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["gpt2, two passes", "llama, norm of a tied embedding", "apertus, relu2, two passes", "opt", "everything"]
)
def test_way_back_of_folded_models(name: str, tmp_path: Path) -> None:
    lm = language_model(STOCK[name][1])
    write(lm, tmp_path, "float32", "folder", [])
    experiment = huggingface.read_experiment(tmp_path)
    back = huggingface.read_weights(tmp_path, experiment)
    again = model.logits(model.build(experiment), back, jnp.asarray(TOKENS))
    np.testing.assert_allclose(again, logits(STOCK[name][1]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama, tied, wide and grouped heads", "everything"])
def test_batch_with_padding_and_beams(name: str, tmp_path: Path) -> None:
    """Padding on the left changes nothing, and beam search reorders the cache: as without a cache."""
    _, theirs = exported(language_model(STOCK[name][1]), tmp_path / "folder")
    rows = [TOKENS[0, :9], TOKENS[1, :4]]
    padded = np.stack([np.pad(row, (9 - len(row), 0)) for row in rows])
    mask = np.stack([np.pad(np.ones_like(row), (9 - len(row), 0)) for row in rows])
    inputs = {"attention_mask": torch.tensor(mask), "do_sample": False, "max_new_tokens": 8}
    texts = theirs.generate(torch.tensor(padded), **inputs)[:, 9:]
    for row, text in zip(rows, texts, strict=True):
        alone = theirs.generate(torch.tensor(row[None]), do_sample=False, max_new_tokens=8)[0, len(row) :]
        assert text[: len(alone)].tolist() == alone.tolist()
    beams = [
        theirs.generate(torch.tensor(padded), num_beams=3, use_cache=cache, **inputs).tolist()
        for cache in (True, False)
    ]
    assert beams[0] == beams[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "everything"])
def test_other_types(name: str, dtype: str, tmp_path: Path) -> None:
    _, theirs = exported(language_model(STOCK[name][1]), tmp_path / "folder", dtype)
    assert theirs.dtype == getattr(torch, dtype)
    np.testing.assert_allclose(their_logits(theirs), logits(STOCK[name][1]), atol=1.0, rtol=0.1)
    tokens = torch.tensor(TOKENS[:, :6])
    assert theirs.generate(tokens, do_sample=False, max_new_tokens=5).shape == (2, 11)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (SampleConfig(k=5, temperature=0.7), {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_length": T}),
        (SampleConfig(temperature=0.0, max_new_tokens=9), {"do_sample": False, "max_new_tokens": 9}),
    ],
)
def test_generation_config(sample: SampleConfig, expected: dict[str, Any], tmp_path: Path) -> None:
    lm = language_model(BASE, "lines")
    lm.experiment = dataclasses.replace(lm.experiment, sample=sample)
    write(lm, tmp_path, "float32", "folder", [])
    config = json.loads((tmp_path / "generation_config.json").read_text())
    ids = {"bos_token_id": BOS_ID, "eos_token_id": 0, "pad_token_id": 0}
    assert config == {**ids, **expected, "suppress_tokens": [BOS_ID, *range(len(PIECES), V)]}


def test_a_text_may_end_by_several_tokens(tmp_path: Path) -> None:
    lm = language_model(BASE)
    lm.end_ids = (BOS_ID, 7, 0)
    write(lm, tmp_path, "float32", "folder", [])
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == [BOS_ID, 7, 0]
    assert json.loads((tmp_path / "generation_config.json").read_text())["suppress_tokens"] == list(
        range(len(PIECES), V)
    )


def test_settings_have_the_names_of_versions_4_and_5_of_transformers(tmp_path: Path) -> None:
    write(language_model(STOCK["llama"][1]), tmp_path, "bfloat16", "folder", [])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100.0
