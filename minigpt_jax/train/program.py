"""Programs: the compiled steps of one trial on all devices, or of a stack of trials that are spread over the devices.

`train.loop.fit` drives both in the same way. Results that are fetched to the host have a leading axis of trials.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model, rng
from minigpt_jax.config import Experiment, OptimizerConfig, SampleConfig, options
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import Rows
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.parallel import devices
from minigpt_jax.train import evaluate, memory, optim
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import TrainState
from minigpt_jax.train.step import StepMetrics, StepSpec, eval_step, init_state, train_step, train_steps

MEMORY_SHARE = 0.8
"""The fraction of the free memory that a stack may use."""


class TrialInputs(NamedTuple):
    """The traced values of a trial. In a stack, every leaf has a leading axis of trials."""

    hyper: optim.Hyperparameters
    init_key: Any
    dropout_key: Any
    dropout_rate: Any = None
    """Replaces the dropout rate of the model, unless it is None."""
    stream: Any = None
    """In a stack, the index of the stream of batches that the trial reads."""


@runtime_checkable
class Program(Protocol):
    """The compiled steps of one or more trials."""

    def init(self, inputs: Any) -> TrainState:
        """Fresh parameters and optimiser states at step 0, on the devices."""
        ...

    def draw(self, streams: Sequence[Iterator[Batch]], size: int) -> Any:
        """The batches of the next `size` steps, whose transfer to the devices has started."""
        ...

    def steps(self, state: TrainState, inputs: Any, batches: Any, size: int) -> tuple[TrainState, StepMetrics]:
        """Makes `size` updates. The state is donated. The metrics stay on the devices, and may still be computed."""
        ...

    def fetch(self, metrics: StepMetrics, size: int) -> StepMetrics:
        """The metrics of `size` steps as arrays on the host, of shape [trials, steps]."""
        ...

    def learning_rates(self, inputs: Any, step: int) -> Sequence[float]:
        """Each trial's learning rate in the update after `step` steps."""
        ...

    def evaluate(self, weights: Any, rows: Rows, batch_size: int) -> list[LossSums]:
        """Each trial's sums over all labels of the rows."""
        ...

    def states(self, state: TrainState) -> Callable[[int], TrainState]:
        """A function from the index of a trial to its state, in the layout of checkpoints."""
        ...

    def from_states(self, states: Sequence[TrainState]) -> TrainState:
        """The inverse of `states`."""
        ...


class DataParallel:
    """One trial on all devices. Each device holds the whole state and computes an equal part of every batch's rows."""

    def __init__(self, experiment: Experiment) -> None:
        self.model = model.build(experiment)
        self._spec = _step_spec(experiment, devices.axis_name())
        self._one = devices.compile(functools.partial(train_step, self._spec), donate=True)
        self._several = devices.compile(functools.partial(train_steps, self._spec), donate=True)

    @staticmethod
    def inputs(experiment: Experiment, total_steps: int) -> TrialInputs:
        """The experiment's traced values."""
        return TrialInputs(
            optim.hyperparameters(experiment.optimizer, total_steps),
            init_key=rng.stream(experiment.seed, "init"),
            dropout_key=rng.stream(experiment.seed, "dropout"),
        )

    def init(self, inputs: TrialInputs) -> TrainState:
        init = jax.jit(functools.partial(init_state, self._spec))
        return devices.put_replicated(init(inputs.hyper, inputs.init_key))

    def draw(self, streams: Sequence[Iterator[Batch]], size: int) -> Any:
        [stream] = streams
        if size == 1:
            return devices.put_batch(next(stream))
        batches = [next(stream) for _ in range(size)]
        return devices.put_batch(jax.tree.map(lambda *arrays: np.stack(arrays), *batches), row_axis=1)

    def steps(self, state: TrainState, inputs: TrialInputs, batches: Any, size: int) -> tuple[TrainState, StepMetrics]:
        step = self._one if size == 1 else self._several
        return step(state, batches, inputs.hyper, inputs.dropout_key)

    def fetch(self, metrics: StepMetrics, size: int) -> StepMetrics:
        return jax.tree.map(lambda x: np.asarray(x).reshape(1, size), jax.device_get(metrics))

    def learning_rates(self, inputs: TrialInputs, step: int) -> list[float]:
        return [float(_learning_rate(inputs.hyper, step))]

    def evaluate(self, weights: Any, rows: Rows, batch_size: int) -> list[LossSums]:
        return [evaluate.evaluate(self.model, weights, rows, batch_size)]

    def states(self, state: TrainState) -> Callable[[int], TrainState]:
        return lambda index: state

    def from_states(self, states: Sequence[TrainState]) -> TrainState:
        [state] = states
        return state


class Stack:
    """Trials that differ only in traced values, trained together by one compiled program.

    States and inputs have a leading axis of trials, N, which is split over the devices. Trials are independent, so the
    devices exchange nothing. There is one stream of batches for each of the S distinct seeds, which its trials share.

    Measurements decided how a device runs its trials. An accelerator runs them in parallel (`vmap`), because a small
    model alone leaves it idle. A CPU runs them one after another inside the program (`lax.map`), because one trial's
    matrices keep two cores busy, and batched matrix products are up to twice as slow.

    Args:
        experiment: that of any of the trials, of which only the `shared_part` is used.
        dropout: whether any of the trials has dropout.
        devices: the number of devices that the trials are spread over.
    """

    def __init__(self, experiment: Experiment, dropout: bool, devices: int) -> None:
        program = shared_part(experiment)
        # Any rate but 0 makes the model draw masks. The actual rates are traced.
        program = dataclasses.replace(program, model=dataclasses.replace(program.model, dropout=0.5 * dropout))
        self._spec = _step_spec(program, axis_name=None)
        self._dropout = dropout
        self.devices = devices
        self.init = self._compile(self._init, (0,))
        self._steps_program = self._compile(self._steps, (0, 0, None), donate=(0,))
        self._evaluate_program = self._compile(self._evaluate, (0, None))
        self._rates = jax.jit(jax.vmap(_learning_rate, (0, None)))
        self._compiled: dict[Any, Any] = {}

    def _compile(self, function: Callable[..., Any], in_axes: tuple[int | None, ...], donate: Any = ()) -> Any:
        return devices.compile_rows(over_trials(function, in_axes), in_axes, donate, self.devices)

    def stacked(self, trials: Any) -> Any:
        """Splits the axis of trials of every leaf over the devices, and pads it with copies of the last trial."""
        count = len(jax.tree.leaves(trials)[0])
        indices = np.minimum(np.arange(-(-count // self.devices) * self.devices), count - 1)
        return devices.split_rows(jax.tree.map(lambda x: x[indices], trials), self.devices)

    def joined(self, tree: Any) -> Any:
        """The inverse of `stacked`, on the host. Copies of the last trial that pad the axis remain at its end."""
        return devices.join_rows(tree, self.devices)

    def _init(self, inputs: TrialInputs) -> TrainState:
        return init_state(self._spec, inputs.hyper, inputs.init_key)

    def _steps(self, state: TrainState, inputs: TrialInputs, batches: Batch) -> tuple[TrainState, StepMetrics]:
        """Makes one update of a trial for each step of `batches`, whose leaves have the shape [steps, S, B, …]."""
        steps, streams = batches.bytes.shape[:2]
        trial_batches = jax.tree.map(lambda x: x[:, 0 if streams == 1 else inputs.stream], batches)
        rest = (inputs.hyper, inputs.dropout_key, inputs.dropout_rate if self._dropout else None)
        if steps > 1:
            return train_steps(self._spec, state, trial_batches, *rest)
        state, metrics = train_step(self._spec, state, jax.tree.map(lambda x: x[0], trial_batches), *rest)
        return state, jax.tree.map(lambda x: x[None], metrics)

    def _evaluate(self, weights: Any, batch: Batch) -> LossSums:
        return eval_step(self._spec.model, weights, batch)

    def compiled(self, inputs: TrialInputs, batches: Batch) -> Any:
        """The compiled program for as many steps as `batches` has, and for inputs that are split over the devices."""
        key = (inputs.stream.shape, batches.rows.shape)
        if key not in self._compiled:
            state = jax.eval_shape(self.init, inputs)
            self._compiled[key] = self._steps_program.lower(state, inputs, batches).compile()
        return self._compiled[key]

    def draw(self, streams: Sequence[Iterator[Batch]], size: int) -> Batch:
        drawn = [next(stream) for _ in range(size) for stream in streams]
        shape = (size, len(streams))
        batches = jax.tree.map(lambda *arrays: np.stack(arrays).reshape(*shape, *arrays[0].shape), *drawn)
        return jax.device_put(batches) if self.devices == 1 else batches

    def steps(self, state: TrainState, inputs: TrialInputs, batches: Any, size: int) -> tuple[TrainState, StepMetrics]:
        return self.compiled(inputs, batches)(state, inputs, batches)

    def fetch(self, metrics: StepMetrics, size: int) -> StepMetrics:
        return self.joined(metrics)

    def learning_rates(self, inputs: TrialInputs, step: int) -> Any:
        return np.asarray(self._rates(self.joined(inputs.hyper), step))

    def evaluate(self, weights: Any, rows: Rows, batch_size: int) -> list[LossSums]:
        queued = [self._evaluate_program(weights, batch) for batch in rows.in_order(batch_size)]
        totals: list[LossSums] = []
        for sums in queued:
            figures = (np.asarray(x).tolist() for x in self.joined(sums))
            parts = [LossSums(*trial) for trial in zip(*figures, strict=True)]
            totals = [total.plus(part) for total, part in zip(totals or [LossSums()] * len(parts), parts, strict=True)]
        return totals

    def states(self, state: TrainState) -> Callable[[int], TrainState]:
        host = self.joined(state)
        return lambda index: devices.put_replicated(jax.tree.map(lambda x: x[index], host))

    def from_states(self, states: Sequence[TrainState]) -> TrainState:
        host = [jax.device_get(state) for state in states]
        return self.stacked(jax.tree.map(lambda *leaves: np.stack(leaves), *host))


def stack(experiment: Experiment, dropout: bool, trials: int) -> Stack:
    """The program for `trials` trials with the `shared_part` of this experiment. Recent programs are reused."""
    return _stack(shared_part(experiment), dropout, devices_for(trials))


@functools.lru_cache(maxsize=8)
def _stack(experiment: Experiment, dropout: bool, devices: int) -> Stack:
    return Stack(experiment, dropout, devices)


def shared_part(experiment: Experiment) -> Experiment:
    """The experiment with defaults in its traced fields. Trials whose shared parts are equal may share a stack."""
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


def stack_inputs(experiments: Sequence[Experiment], streams: Sequence[int], total_steps: int) -> TrialInputs:
    """The traced values of some trials, on the host.

    Args:
        streams: for each trial, the index of its stream of batches.
    """
    return TrialInputs(
        hyper=jax.tree.map(
            lambda *scalars: np.stack(scalars),
            *(optim.hyperparameters(experiment.optimizer, total_steps) for experiment in experiments),
        ),
        init_key=jnp.stack([rng.stream(experiment.seed, "init") for experiment in experiments]),
        dropout_key=jnp.stack([rng.stream(experiment.seed, "dropout") for experiment in experiments]),
        dropout_rate=np.array([experiment.model.dropout for experiment in experiments], np.float32),
        stream=np.array(streams, np.int32),
    )


def over_trials(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Maps `function` over trials, along axis 0 of the arguments whose entry in `in_axes` is 0."""
    if not on_cpu():
        return jax.vmap(function, in_axes)

    def one_by_one(*arguments: Any) -> Any:
        stacked = [argument for argument, axis in zip(arguments, in_axes, strict=True) if axis == 0]

        def call(trial: list[Any]) -> Any:
            mapped = iter(trial)
            return function(*(next(mapped) if axis == 0 else a for a, axis in zip(arguments, in_axes, strict=True)))

        return jax.lax.map(call, stacked)

    return one_by_one


def devices_for(trials: int) -> int:
    """The fewest devices that need no more rounds than all devices would.

    With 8 devices, 9 trials take 2 rounds, for which 5 devices suffice.
    """
    return -(-trials // -(-trials // devices.local_devices()))


def fitting_trials(experiment: Experiment, dropout: bool, inputs: TrialInputs, batches: Batch) -> int:
    """The number of trials that fit into memory together.

    It compiles their program, and halves the number of trials until the program fits.
    """
    count = len(inputs.stream)
    while count > 1:
        some = stack(experiment, dropout, count)
        compiled = some.compiled(some.stacked(jax.tree.map(lambda x, n=count: x[:n], inputs)), batches)
        if memory_needed(compiled, some.devices) <= MEMORY_SHARE * memory.free():
            break
        count = -(-count // 2)
    return count


def memory_needed(compiled: Any, devices: int) -> int:
    """The bytes that a compiled program needs on one accelerator, or on the host; 0 if they are not reported."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    needed = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    needed -= stats.alias_size_in_bytes
    return needed * (devices if on_cpu() else 1)


def _step_spec(experiment: Experiment, axis_name: str | None) -> StepSpec:
    return StepSpec(
        model.build(experiment),
        experiment.optimizer,
        train_line_end=experiment.data.layout == "lines",
        accumulate=experiment.train.accumulate,
        axis_name=axis_name,
    )


def _learning_rate(hyper: optim.Hyperparameters, step: Any) -> Any:
    return hyper.learning_rate * optim.schedule(hyper.schedule, hyper, step)
