"""`fit`: the loop that drives a program, for one trial or for a stack of them. It knows no files and no sweeps."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from minigpt_jax.data.batch import Batch
from minigpt_jax.parallel import devices
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.program import Program, TrialInputs
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.train.step import StepMetrics


class NonFiniteLossError(Exception):
    """The objective of a step, or its gradient, is NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step}")
        self.step = step


@runtime_checkable
class Trial(Protocol):
    """What `fit` knows of a trial that it trains."""

    progress: Progress
    """Updated in place, step by step, as metrics become known."""
    ended: bool
    """True once no more of its steps count."""

    def advanced(self) -> None:
        """Called when some steps' metrics are known."""
        ...

    def log(self, learning_rate: float, grad_norm: float) -> None:
        """Called every `log_every` steps and at the last one: the time to record `progress.since_log`."""
        ...


@dataclass
class CountedTrial:
    """A trial that is counted and not recorded, for measurements."""

    progress: Progress = field(default_factory=Progress)
    ended: bool = False
    on_advance: Callable[[int], None] = lambda step: None

    def advanced(self) -> None:
        self.on_advance(self.progress.step)

    def log(self, learning_rate: float, grad_norm: float) -> None: ...


@dataclass
class Training:
    """What is being trained. Hooks read it, and may replace the program along with its state, inputs and trials.

    Attributes:
        program: the compiled steps.
        inputs: the trials' traced values, as the program takes them.
        state: the trials' parameters and optimiser states, after `step` steps.
        trials: in the order in which the program holds them; those that have ended stay in their places.
        step: steps dispatched so far.
    """

    program: Program
    inputs: TrialInputs
    state: TrainState
    trials: Sequence[Any]
    step: int = 0

    @property
    def active(self) -> list[int]:
        """The places of the trials that have not ended."""
        return [i for i, trial in enumerate(self.trials) if not trial.ended]


@dataclass(frozen=True)
class Hook:
    """Called at the steps that `every` divides, at those in `at`, and after the last one.

    All earlier steps' metrics are settled by then, and the call's time does not count as training's.
    """

    call: Callable[[Training], None]
    every: int
    at: frozenset[int] = frozenset()

    def due(self, step: int, total_steps: int) -> bool:
        return step % self.every == 0 or step in self.at or step == total_steps


def plan_dispatches(
    step: int, total_steps: int, steps_per_execution: int, periods: Sequence[int], at: frozenset[int] = frozenset()
) -> Iterator[int]:
    """Splits the remaining steps into dispatches: full ones where no hook is due inside, single steps elsewhere."""
    while step < total_steps:
        ends = [(step // every + 1) * every for every in periods] + [there for there in at if there > step]
        size = steps_per_execution if step + steps_per_execution <= min([total_steps, *ends]) else 1
        yield size
        step += size


def fit(
    training: Training,
    streams: Sequence[Iterator[Batch]],
    total_steps: int,
    *,
    log_every: int = 1,
    steps_per_execution: int | None = None,
    hooks: Sequence[Hook] = (),
    on_divergence: Callable[[Training, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains until `total_steps`, until all trials have ended, or until `should_stop()` says so between two dispatches.

    A dispatch is queued before the metrics of the one before it are fetched, so that logging never stalls the device.

    Args:
        streams: an iterator of batches for each distinct seed among the trials.
        steps_per_execution: steps that one call of the program makes where no hook is due inside; by default what suits
            the device.
        on_divergence: called with the place of a trial whose objective or gradient is NaN or infinite.

    Raises:
        NonFiniteLossError: at the first such step, where there is no `on_divergence`.
    """
    periods = [hook.every for hook in hooks]
    at = frozenset[int]().union(*(hook.at for hook in hooks))
    together = steps_per_execution or devices.steps_per_execution(periods)
    sizes = plan_dispatches(training.step, total_steps, together, periods, at)
    dispatches = devices.prefetch((size, training.program.draw(streams, size)) for size in sizes)
    pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
    mark = time.perf_counter()

    def settle() -> None:
        nonlocal mark
        size, out = pending.popleft()
        metrics = training.program.fetch(out, size)
        now = time.perf_counter()
        _count(training, metrics, (now - mark) / size, total_steps, log_every, on_divergence or _raise)
        mark = now

    for size, batches in dispatches:
        training.state, out = training.program.steps(training.state, training.inputs, batches, size)
        training.step += size
        pending.append((size, out))
        due = [hook for hook in hooks if hook.due(training.step, total_steps)]
        while len(pending) > (0 if due else 1):
            settle()
        for hook in due:
            if training.active:
                hook.call(training)
        if due:
            mark = time.perf_counter()
        if should_stop() or not training.active:
            break
    while pending:
        settle()


def _count(
    training: Training,
    metrics: StepMetrics,
    seconds: float,
    total_steps: int,
    log_every: int,
    on_divergence: Callable[[Training, int], None],
) -> None:
    """Adds the steps of one dispatch, of `seconds` each, to the progress of each trial, and has the due ones logged."""
    if not (active := training.active):
        return
    first = training.trials[active[0]].progress.step
    finite = np.isfinite(metrics.objective) & np.isfinite(metrics.grad_norm)  # a gradient can overflow alone
    nats, tokens, sizes = (np.asarray(x).tolist() for x in metrics.sums)
    for k in range(finite.shape[1]):
        step = first + k + 1
        due = step % log_every == 0 or step == total_steps
        rates = training.program.learning_rates(training.inputs, step - 1) if due else ()
        for i in active:
            trial = training.trials[i]
            if trial.ended:
                continue
            trial.progress.count(LossSums(nats[i][k], tokens[i][k], sizes[i][k]), seconds)
            if not finite[i, k]:
                on_divergence(training, i)
            elif due:
                trial.log(float(rates[i]), float(metrics.grad_norm[i, k]))
    for i in training.active:
        training.trials[i].advanced()


def _raise(training: Training, place: int) -> None:
    raise NonFiniteLossError(training.trials[place].progress.step)
