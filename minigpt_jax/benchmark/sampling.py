"""Implementations of sampling to time: this project, KerasHub with and without a cache, and Hugging Face.

All use the same weights and generate 127 tokens from an empty prompt. Libraries that are not installed are skipped.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model, samplers
from minigpt_jax.config import BOS_ID, RESERVED_PIECES, Experiment
from minigpt_jax.generate import LanguageModel
from minigpt_jax.tokenizer import WordPiece

WINDOW, NEW = 128, 127
METHODS: dict[str, samplers.Sampler] = {
    "greedy": samplers.Greedy(),
    "random": samplers.Random(),
    "top-k 10": samplers.TopK(k=10),
    "top-p 0.5": samplers.TopP(p=0.5),
    "beam 10": samplers.Beam(10, length_penalty=0.0),
    "contrastive 4": samplers.Contrastive(k=4, alpha=0.6),
}
Contenders = dict[str, Callable[[], Any]]


def language_model(experiment: Experiment, params: Any) -> LanguageModel:
    """A model with these weights and an artificial vocabulary."""
    size = experiment.tokenizer.rows
    pieces = [*RESERVED_PIECES, *(f"w{i}" for i in range(size - len(RESERVED_PIECES)))]
    return LanguageModel(experiment, WordPiece(pieces), jax.tree.map(jnp.asarray, params))


def fresh(experiment: Experiment) -> Any:
    return model.build(experiment).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def weights_of_kerashub() -> Any:
    if importlib.util.find_spec("keras_hub") is None:
        return fresh(Experiment("reference"))
    from minigpt_jax.benchmark import kerashub

    return kerashub.from_keras(kerashub_model())


@functools.cache
def kerashub_model() -> Any:
    from minigpt_jax.benchmark import kerashub

    return kerashub.tutorial_model(seed=0)


def contenders(reference: LanguageModel, method: str, batch: int) -> Contenders:
    """The contenders by name. Those in GPT-2's form share weights, and all others share other weights."""
    calls: Contenders = {"minigpt_jax": functools.partial(ours, reference, method, batch)}
    if importlib.util.find_spec("keras_hub") is not None:
        calls |= of_kerashub(method, batch)
    if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None:
        calls |= of_huggingface(method, batch)
    return calls


def ours(lm: LanguageModel, method: str, batch: int) -> Any:
    return lm.generate([""] * batch, METHODS[method], NEW)


def of_kerashub(method: str, batch: int) -> Contenders:
    from minigpt_jax.benchmark import kerashub

    theirs = kerashub.keras_hub.samplers
    make: Callable[[], Any] = {
        "greedy": theirs.GreedySampler,
        "random": theirs.RandomSampler,
        "top-k 10": lambda: theirs.TopKSampler(k=10),
        "top-p 0.5": lambda: theirs.TopPSampler(p=0.5),
        "beam 10": lambda: theirs.BeamSampler(num_beams=10),
        "contrastive 4": lambda: theirs.ContrastiveSampler(k=4, alpha=0.6),
    }[method]
    prompts = np.zeros((batch, WINDOW), np.int32)
    prompts[:, 0] = BOS_ID
    ways = {"KerasHub, cached": kerashub.cached_generate}
    if batch == 1 and method != "contrastive 4":  # the tutorial's callback does not return hidden states
        ways |= {"KerasHub, the tutorial's way": kerashub.tutorial_generate}
        ways |= {"KerasHub, the tutorial's way, jitted": kerashub.uncached_generate}
    return {
        name: functools.partial(way(kerashub_model(), make(), 1), prompts)  # [BOS] is given
        for name, way in ways.items()
    }


@functools.cache
def gpt2_pair() -> tuple[LanguageModel, Any]:
    """This project's model and Hugging Face's, both in GPT-2's form and with the same weights."""
    from minigpt_jax.benchmark import huggingface

    experiment = Experiment("gpt2", model=huggingface.GPT2_FORM)
    params = fresh(experiment)
    return language_model(experiment, params), huggingface.to_gpt2(experiment, params)


def of_huggingface(method: str, batch: int) -> Contenders:
    import torch

    settings: dict[str, Any] | None = {
        "greedy": {"do_sample": False},
        "random": {"do_sample": True, "top_k": 0},
        "top-k 10": {"do_sample": True, "top_k": 10},
        "top-p 0.5": {"do_sample": True, "top_k": 0, "top_p": 0.5},
        "beam 10": {"do_sample": False, "num_beams": 10, "length_penalty": 0.0, "early_stopping": "never"},
    }.get(method)  # contrastive search has left the library
    if settings is None:
        return {}
    lm, theirs = gpt2_pair()
    prompts = torch.full((batch, 1), BOS_ID)

    def generate(**more: Any) -> Any:
        with torch.inference_mode():
            return theirs.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, pad_token_id=0, **settings, **more
            ).numpy()

    return {
        "minigpt_jax, GPT-2's form": functools.partial(ours, lm, method, batch),
        "Hugging Face, dynamic cache": generate,
        "Hugging Face, static cache": functools.partial(generate, cache_implementation="static"),
    }
