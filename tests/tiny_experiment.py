"""An experiment small enough to run in a second or two, for tests of the whole way."""

import dataclasses
from typing import Any

from minigpt_jax.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)

EXPERIMENT = Experiment(
    name="tiny",
    data=DataConfig(corpus="stories", stories=200, layout="packed", sequence_length=32),
    tokenizer=TokenizerConfig(vocabulary_size=300),
    model=ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=32, positions="rope", dropout=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    train=TrainConfig(batch_size=16, steps=12, log_every=5, evaluate_every=6, checkpoint_every=6, trackers=()),
    sample=SampleConfig(prompts=("once upon a time",), max_new_tokens=8),
)


def changed(section: str, experiment: Experiment = EXPERIMENT, **fields: Any) -> Experiment:
    """The experiment with some fields of a section changed."""
    return dataclasses.replace(experiment, **{section: dataclasses.replace(getattr(experiment, section), **fields)})
