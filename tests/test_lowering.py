"""Programs in the form of platforms that the tests cannot run on: lowered for CUDA and TPU, on whatever machine.

Lowering finds what a platform has no rule for, and traces what only its form has: bfloat16, fused attention, the
embedding's gradient by a product, trials in one batch. Compiling and running take the device.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EVERYTHING, TWO_LAYERS, T, V

from minigpt_jax import model, samplers
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from minigpt_jax.data.batch import Batch
from minigpt_jax.model import GPT
from minigpt_jax.ops.platform import on_cpu, traced_for
from minigpt_jax.train import optim
from minigpt_jax.train.program import Stack, over_trials, stack_inputs
from minigpt_jax.train.step import StepSpec, eval_step, init_state, train_step, train_steps

ROWS, STEPS, TRIALS, ROOM = 8, 2, 3, 8
EXPERIMENTS = {
    name: Experiment(
        name=name,
        data=DataConfig(sequence_length=T),
        tokenizer=TokenizerConfig(vocabulary_size=V),
        model=dataclasses.replace(config, dropout=0.1),
        optimizer=OptimizerConfig(name=optimizer, ema_decay=0.9),
        train=TrainConfig(batch_size=ROWS, accumulate=2),
    )
    for name, config, optimizer in (("reference", TWO_LAYERS, "adam"), ("everything", EVERYTHING, "normuon"))
}
for_each_accelerator = pytest.mark.parametrize("platform", ["cuda", "tpu"])
for_each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))


def lowered(platform: str, function: Any, *inputs: Any) -> str:
    """The program of a function of these inputs (or of their shapes) for a platform, as text."""
    with traced_for(platform):
        return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def batches(*shape: int) -> Batch:
    return Batch(np.ones((*shape, T + 1), np.uint8), np.ones(shape, np.int32), np.full(shape, T + 1, np.int32))


def train_step_and_inputs(experiment: Experiment, platform: str) -> tuple[Any, tuple[Any, ...]]:
    """The train step in the form of a platform, with its inputs."""
    with traced_for(platform):
        spec = StepSpec(model.build(experiment), experiment.optimizer, True, experiment.train.accumulate)
        hyper = optim.hyperparameters(experiment.optimizer, 10)
        state = jax.eval_shape(functools.partial(init_state, spec), hyper, jax.random.key(0))
    return functools.partial(train_step, spec), (state, batches(ROWS), hyper, jax.random.key(0))


@for_each_accelerator
@for_each_experiment
def test_train_step(experiment: Experiment, platform: str) -> None:
    step, (state, batch, hyper, key) = train_step_and_inputs(experiment, platform)
    [spec] = step.args
    assert spec.model.dtype == jnp.bfloat16
    lowered(platform, functools.partial(train_steps, spec), state, batches(STEPS, ROWS), hyper, key)  # and train_step
    lowered(platform, functools.partial(eval_step, spec.model), state.params, batch)


@for_each_accelerator
@for_each_experiment
def test_step_of_stacked_trials(experiment: Experiment, platform: str) -> None:
    with traced_for(platform):
        stack = Stack(experiment, dropout=True, devices=1)
        inputs = stack_inputs([experiment] * TRIALS, [0, 1, 0], total_steps=10)
        init, steps = over_trials(stack._init, (0,)), over_trials(stack._steps, (0, 0, None))
        state = jax.eval_shape(init, inputs)
    lowered(platform, init, inputs)
    lowered(platform, steps, state, inputs, batches(STEPS, 2, ROWS))


def sampling(config: ModelConfig, sampler: samplers.Sampler) -> tuple[Any, tuple[Any, ...]]:
    """What samples from a model, and its inputs: weights, sampler and request."""
    gpt = GPT(config, vocabulary_size=V, sequence_length=T + ROOM, dtype=jnp.bfloat16)
    tokens_BT = jax.ShapeDtypeStruct((1, T), jnp.int32)
    trained = jax.eval_shape(gpt.init, jax.random.key(0), tokens_BT)["params"]
    weights = jax.eval_shape(lambda params: model.for_decoding(gpt, params)[1], trained)
    gpt = gpt.clone(config=dataclasses.replace(config, tied_embeddings=False))
    request = samplers.request([[2], [2, 5, 7]], vocabulary_size=V, max_new_tokens=ROOM, width=T, stops=[[4]])

    def decode(weights: Any, sampler: samplers.Sampler, request: samplers.Request) -> samplers.Output:
        apply = functools.partial(gpt.apply, {"params": weights})
        prefill = lambda tokens_BT, length_B: apply(tokens_BT, length_B, T + ROOM, method="prefill")  # noqa: E731
        return samplers.decode(prefill, functools.partial(apply, method="step"), sampler, request, ROOM)

    return decode, (weights, sampler, request)


@for_each_accelerator
@pytest.mark.parametrize("method", samplers.METHODS)
def test_sampler(method: str, platform: str) -> None:
    decode, inputs = sampling(TWO_LAYERS, samplers.METHODS[method]())
    lowered(platform, decode, *inputs)


@for_each_accelerator
@pytest.mark.parametrize("method", ["random", "beam", "contrastive"])  # one for each loop that handles a cache
def test_sampler_with_a_model_that_has_all_parts(method: str, platform: str) -> None:
    decode, inputs = sampling(EVERYTHING, samplers.METHODS[method]())
    lowered(platform, decode, *inputs)


def test_form_is_that_of_the_platform_asked_for() -> None:
    """Only the CPU's form constrains the layout of bfloat16 products and goes through trials one by one."""
    experiment = dataclasses.replace(
        EXPERIMENTS["reference"], model=dataclasses.replace(TWO_LAYERS, dtype="bfloat16"), train=TrainConfig()
    )
    texts = {}
    for platform in ("cpu", "cuda", "tpu"):
        step, inputs = train_step_and_inputs(experiment, platform)
        texts[platform] = lowered(platform, step, *inputs)
        with traced_for(platform):
            assert on_cpu() == (platform == "cpu")
            looped = "while" in lowered(platform, over_trials(jnp.sin, (0,)), np.zeros(TRIALS, np.float32))
        assert looped == (platform == "cpu")
    constrained = [platform for platform, text in texts.items() if "LayoutConstraint" in text]
    assert constrained == ["cpu"]
    assert on_cpu() == (jax.default_backend() == "cpu")


def test_a_function_is_traced_anew_for_another_platform() -> None:
    traced = jax.jit(lambda: jnp.float32(on_cpu()))
    with traced_for("cuda"):
        assert traced() == 0
    with traced_for("cpu"):
        assert traced() == 1
