"""Stacks: trials that differ in traced values alone, trained in lockstep by one compiled program.

States, hyperparameters and keys carry a leading axis of trials, N, which is what is spread over the devices: no trial
needs another, so nothing is summed. The batch is read once for each distinct seed, S, and shared by its trials. A trial
that diverges is a lane of NaNs beside the others; a lane whose trial has ended is dropped once enough of them are.

How a device runs its trials is measured, not guessed. An accelerator takes them all at once (`vmap`), for a small model
leaves it idle. A CPU takes one after another inside the program (`lax.map`): two cores are busy with one trial's
matrices, whose batched form is up to twice as slow as they are one by one.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model, rng
from minigpt_jax.config import Experiment, OptimizerConfig, SampleConfig, options
from minigpt_jax.data.batch import Batch
from minigpt_jax.parallel import devices
from minigpt_jax.train import memory, optim
from minigpt_jax.train.state import TrainState
from minigpt_jax.train.step import StepMetrics, Trainer, eval_step, init_state, train_step, train_steps

MEMORY_SHARE = 0.8


def program_of(experiment: Experiment) -> Experiment:
    """The experiment without what a program does not depend on: equal for those that may share a stack."""
    default = OptimizerConfig()
    ema_decay = None if experiment.optimizer.ema_decay is None else 0.0
    traced = {option.name: getattr(default, option.name) for option in options(default) if option.facts.traced}
    return dataclasses.replace(
        experiment,
        optimizer=dataclasses.replace(experiment.optimizer, **traced, ema_decay=ema_decay),
        model=dataclasses.replace(experiment.model, dropout=0.0),
        sample=SampleConfig(),
        seed=0,
    )


class Lanes(NamedTuple):
    """What a program is told about its trials; every leaf has the axis of trials in front."""

    hyper: optim.Hyperparameters
    init_key: Any
    dropout_key: Any
    dropout_rate: Any
    source: Any
    """Which of the S batches is the trial's."""


def lanes_of(experiments: Sequence[Experiment], sources: Sequence[int], total_steps: int) -> Lanes:
    """The traced values of some trials."""
    return Lanes(
        hyper=jax.tree.map(
            lambda *scalars: np.stack(scalars),
            *(optim.hyperparameters(experiment.optimizer, total_steps) for experiment in experiments),
        ),
        init_key=jnp.stack([rng.stream(experiment.seed, "init") for experiment in experiments]),
        dropout_key=jnp.stack([rng.stream(experiment.seed, "dropout") for experiment in experiments]),
        dropout_rate=np.array([experiment.model.dropout for experiment in experiments], np.float32),
        source=np.array(sources, np.int32),
    )


def over_trials(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`function` for each trial, along axis 0 of those arguments whose entry in `in_axes` is 0."""
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes)

    def one_by_one(*arguments: Any) -> Any:
        stacked = [argument for argument, axis in zip(arguments, in_axes, strict=True) if axis == 0]

        def call(trial: list[Any]) -> Any:
            own = iter(trial)
            return function(*(next(own) if axis == 0 else a for a, axis in zip(arguments, in_axes, strict=True)))

        return jax.lax.map(call, stacked)

    return one_by_one


class Program:
    """The compiled programs of a stack: one for each width that is asked for.

    Args:
        experiment: any of the trials'; `program_of` it is all that counts, and whether there is `dropout`.
        devices: how many share out the trials.
    """

    def __init__(self, experiment: Experiment, dropout: bool, devices: int) -> None:
        program = program_of(experiment)
        # Any rate but 0: it says that there are masks, not how dense they are.
        program = dataclasses.replace(program, model=dataclasses.replace(program.model, dropout=0.5 * dropout))
        self.gpt = model.build(program)
        self.trainer = Trainer(
            self.gpt,
            program.optimizer,
            train_pad_label=program.data.layout == "lines",
            accumulate=program.train.accumulate,
        )
        self._dropout = dropout
        self.devices = devices
        self.init = self._compile(self._init, (0,))
        self.steps = self._compile(self._steps, (0, 0, None), donate=(0,))
        self.evaluate = self._compile(self._evaluate, (0, None))
        self.learning_rate = jax.jit(jax.vmap(self._learning_rate, (0, None)))
        self._compiled: dict[Any, Any] = {}

    def _compile(self, function: Callable[..., Any], in_axes: tuple[int | None, ...], donate: Any = ()) -> Any:
        return devices.compile_rows(over_trials(function, in_axes), in_axes, donate, self.devices)

    def stacked(self, trials: Any) -> Any:
        """Trials, along the leading axis of every leaf, as a stack that is split over the devices."""
        count = len(jax.tree.leaves(trials)[0])
        places = np.minimum(np.arange(-(-count // self.devices) * self.devices), count - 1)
        return devices.split_rows(jax.tree.map(lambda x: x[places], trials), self.devices)

    def joined(self, tree: Any) -> Any:
        """The inverse of `stacked`, on the host, with what fills up the last device's share at the end."""
        return devices.join_rows(tree, self.devices)

    def _init(self, lane: Lanes) -> TrainState:
        return init_state(self.trainer, lane.hyper, lane.init_key)

    def _steps(self, state: TrainState, lane: Lanes, batches: Batch) -> tuple[TrainState, StepMetrics]:
        """As many updates as `batches`, of shape [steps, S, B, …], has steps."""
        steps, sources = batches.bytes.shape[:2]
        own = jax.tree.map(lambda x: x[:, 0 if sources == 1 else lane.source], batches)
        rest = (lane.hyper, lane.dropout_key, lane.dropout_rate if self._dropout else None)
        if steps > 1:
            return train_steps(self.trainer, state, own, *rest)
        state, metrics = train_step(self.trainer, state, jax.tree.map(lambda x: x[0], own), *rest)
        return state, jax.tree.map(lambda x: x[None], metrics)

    def _evaluate(self, weights: Any, batch: Batch) -> Any:
        return eval_step(self.gpt, weights, batch)

    def _learning_rate(self, hyper: optim.Hyperparameters, step: Any) -> Any:
        return hyper.learning_rate * optim.schedule(hyper.schedule, hyper, step)

    def compiled(self, lanes: Any, batches: Batch) -> Any:
        """The program of some steps for a stack (lanes that are already split over the devices)."""
        key = (lanes.source.shape, batches.rows.shape)
        if key not in self._compiled:
            state = jax.eval_shape(self.init, lanes)
            self._compiled[key] = self.steps.lower(state, lanes, batches).compile()
        return self._compiled[key]


@functools.lru_cache(maxsize=8)
def _program(experiment: Experiment, dropout: bool, devices: int) -> Program:
    return Program(experiment, dropout, devices)


def program(experiment: Experiment, dropout: bool, trials: int) -> Program:
    """The program for so many trials that share `program_of(experiment)`, kept for the next stack that needs it."""
    return _program(program_of(experiment), dropout, devices_for(trials))


def devices_for(trials: int) -> int:
    """The fewest devices that are done as soon as all of them would be: 9 trials are 2 rounds of 5, not of 8."""
    return -(-trials // -(-trials // devices.local_devices()))


def fitting(experiment: Experiment, dropout: bool, lanes: Lanes, batches: Batch) -> int:
    """How many of the trials fit into memory at once, found by compiling: all of them, or halves until they do."""
    count = len(lanes.source)
    while count > 1:
        some = program(experiment, dropout, count)
        compiled = some.compiled(some.stacked(jax.tree.map(lambda x, n=count: x[:n], lanes)), batches)
        if memory_needed(compiled, some.devices) <= MEMORY_SHARE * memory.free():
            break
        count = -(-count // 2)
    return count


def memory_needed(compiled: Any, devices: int) -> int:
    """Bytes that a compiled program takes on one accelerator, or on the host; 0 where the backend does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    needed = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    needed -= stats.alias_size_in_bytes
    return needed * (devices if jax.default_backend() == "cpu" else 1)
