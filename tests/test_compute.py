"""The operations of training, against the count that the literature has."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig, TrainConfig
from minigpt_jax.model import build
from minigpt_jax.train import compute


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_training_takes_six_operations_per_weight_and_token(name: str):
    """6 N D (Kaplan et al. 2020) for N weights of dense layers and D tokens, and 12 T a feature of attention.

    A pointer has one product of queries and keys, and no sum of values.
    """
    length, batch, steps = 8, 3, 5
    config = tiny.CONFIGS[name]
    experiment = Experiment(
        "tiny",
        data=DataConfig(sequence_length=length),
        tokenizer=TokenizerConfig(vocabulary_size=tiny.V, start_id=2),
        model=config,
        train=TrainConfig(batch_size=batch),
    )
    shapes = jax.eval_shape(build(experiment).init, jax.random.key(0), np.zeros((1, length), np.int32))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    kernels = {path: leaf.size for path, leaf in leaves if path[-1].key == "kernel"}
    blocks = sum(size for path, size in kernels.items() if path[0].key.startswith("block_"))
    weights = blocks * config.repeats + sum(kernels.values()) - blocks
    weights += tiny.V * (config.embedding_width or config.width) if config.tied_embeddings else 0
    features = config.num_layers * config.repeats * config.num_heads * config.head_size + config.pointer / 2
    expected = steps * batch * length * (6 * weights + 12 * features * length)
    assert compute.training_flops(experiment, steps) == expected
    assert compute.parameters(experiment) == sum(leaf.size for _, leaf in leaves)


def test_products_inside_loops_count_each_time():
    remat = replace(tiny.CONFIGS["reference"], remat=True)
    experiment = Experiment("tiny", tokenizer=TokenizerConfig(vocabulary_size=tiny.V), model=remat)
    plain = replace(experiment, model=tiny.CONFIGS["reference"])
    assert compute.flops_per_token(experiment) == compute.flops_per_token(plain)
