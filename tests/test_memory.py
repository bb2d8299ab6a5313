"""Experiments that cannot fit into memory are refused before compilation, by a close lower bound."""

import dataclasses

import jax
import pytest
import tiny_experiment
from tiny import CONFIGS
from tiny_experiment import EXPERIMENT

from minigpt_jax import model
from minigpt_jax.config import Experiment, ModelConfig
from minigpt_jax.errors import UserError
from minigpt_jax.train import memory
from minigpt_jax.trial.run import run

BIG = {"width": 256, "embedding_width": 128, "feed_forward": 1024, "pointer": 64}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_matrices_are_nearly_all_parameters_of_a_model(config: ModelConfig):
    """The tiny configurations with a larger width, so that biases and norms are as small a part as in practice."""
    sizes = {name: size if getattr(config, name) else 0 for name, size in BIG.items()}
    experiment = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(config, **sizes))
    exact = sum(leaf.size for leaf in jax.tree.leaves(model.parameter_shapes(experiment)))
    bound = sum(part.size for part in memory.matrices(experiment))
    assert 0.97 * exact < bound <= exact


@pytest.mark.parametrize("name", memory.MOMENTS)
def test_optimisers_store_at_least_the_listed_moments(name: str):
    from minigpt_jax.train import optim

    experiment = dataclasses.replace(EXPERIMENT, model=ModelConfig(**{**BIG, "pointer": 0}))
    shapes = model.parameter_shapes(experiment)
    config = dataclasses.replace(EXPERIMENT.optimizer, name=name)
    rule = optim.transformation(config, optim.hyperparameters(config, 10), 0)
    kept = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(rule.init, shapes)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert memory.MOMENTS[name] * parameters <= kept + 1


@pytest.mark.parametrize(
    ("section", "field", "value", "what"),
    [
        ("model", "width", 10**7, "the attention layers"),
        ("model", "num_layers", 2**31 - 1, "the attention layers"),
        ("model", "feed_forward", 10**12, "the feed-forward layers"),
        ("tokenizer", "vocabulary_size", 10**12, "the token embedding"),
        ("model", "width", 6 * 10**6, "the feed-forward layers"),  # which follow it, as feed_forward is None below
        ("data", "sequence_length", 10**12, "the attention weights of one layer"),
        ("train", "batch_size", 8 * 10**12, "the rows of a batch"),
    ],
)
def test_absurd_sizes_are_refused_in_one_line(section: str, field: str, value: int, what: str):
    follows = {"feed_forward": None} if what == "the feed-forward layers" and field == "width" else {}
    changed = dataclasses.replace(getattr(EXPERIMENT, section), **{field: value}, **follows)
    with pytest.raises(UserError, match=f"^--{section}.{field.replace('_', '-')} {value}: ") as raised:
        memory.check_memory(dataclasses.replace(EXPERIMENT, **{section: changed}))
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_vocabulary_too_large_for_a_factorised_embedding():
    experiment = tiny_experiment.changed("model", embedding_width=8)
    experiment = tiny_experiment.changed("tokenizer", experiment, vocabulary_size=10**12)
    with pytest.raises(UserError, match=r"^--tokenizer\.vocabulary-size 1000000000000: "):
        memory.check_memory(experiment)


def test_a_run_that_exceeds_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """On eight devices of one host there are eight copies of the state."""
    sizes = sum(part.size for part in memory.needed(EXPERIMENT))
    monkeypatch.setattr(memory, "free", lambda: jax.local_device_count() * sizes)
    memory.check_memory(EXPERIMENT)
    monkeypatch.setattr(memory, "free", lambda: jax.local_device_count() * sizes - 1)
    memory.check_memory(EXPERIMENT, copies=1)
    with pytest.raises(UserError, match="training takes at least"):
        run(EXPERIMENT, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_reference_needs_little_memory():
    assert sum(part.size for part in memory.needed(Experiment(name="reference"))) < 2**26
