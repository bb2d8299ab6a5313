"""The matrix products of a train step, against the count of operations that the literature has for it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from minigpt_jax.benchmark import matmuls
from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig, TrainConfig
from minigpt_jax.model import build


@pytest.mark.parametrize(
    "name", ["reference", "swiglu", "grouped heads", "head gate", "pointer", "two passes", "factorised embedding"]
)
def test_matmuls_take_six_operations_per_weight_and_token(name: str) -> None:
    """6 N D (Kaplan et al. 2020) for N weights of dense layers and D tokens, and 12 T² a feature of attention.

    A pointer has the half of that, as it sums no values, and no sums in the gradient that its sentinel's one column
    sends back.
    """
    length, batch = 8, 3
    config = replace(tiny.CONFIGS[name], tied_embeddings=False)
    experiment = Experiment(
        "tiny",
        data=DataConfig(sequence_length=length),
        tokenizer=TokenizerConfig(vocabulary_size=tiny.V),
        model=config,
        train=TrainConfig(batch_size=batch),
    )
    shapes = jax.eval_shape(build(experiment).init, jax.random.key(0), np.zeros((1, length), np.int32))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    kernels = {path: leaf.size for path, leaf in leaves if path[-1].key == "kernel"}
    blocks = sum(size for path, size in kernels.items() if path[0].key.startswith("block_"))
    weights = blocks * config.repeats + sum(kernels.values()) - blocks
    features = config.num_layers * config.repeats * config.num_heads * config.head_size
    features += config.pointer / 2
    unsummed = config.width if config.pointer else 0
    call = matmuls.of_train_step(experiment)
    operations = call.func.lower(*call.args).compile().cost_analysis()["flops"]
    assert operations == (6 * weights - unsummed) * batch * length + 12 * features * batch * length**2
    assert all(np.isfinite(made).all() for made in jax.tree.leaves(call()))
