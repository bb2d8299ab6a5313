"""`fit`: the loop that drives a program, for one trial or for a stack of them. It imports neither files nor sweeps."""

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
    """The interface of a trial that `fit` trains."""

    progress: Progress
    """Updated in place after each step whose metrics have been fetched."""
    ended: bool
    """Whether the trial has ended, so that its further steps are ignored."""

    def advanced(self) -> None:
        """Called after the metrics of one or more steps have been added to `progress`."""
        ...

    def log(self, learning_rate: float, grad_norm: float) -> None:
        """Records `progress.since_log`. Called every `log_every` steps and after the last step."""
        ...


@dataclass
class CountedTrial:
    """A trial that counts its steps and records nothing, for benchmarks."""

    progress: Progress = field(default_factory=Progress)
    ended: bool = False
    on_advance: Callable[[int], None] = lambda step: None

    def advanced(self) -> None:
        self.on_advance(self.progress.step)

    def log(self, learning_rate: float, grad_norm: float) -> None: ...


@dataclass
class Training:
    """The trials in training. Hooks read it, and may replace the program together with its state, inputs and trials.

    Attributes:
        program: the compiled steps.
        inputs: the trials' traced values, as the program takes them.
        state: the trials' parameters and optimiser states, after `step` steps.
        trials: the trials in the order of the program. Ended trials remain in it.
        step: the number of steps dispatched so far.
    """

    program: Program
    inputs: TrialInputs
    state: TrainState
    trials: Sequence[Any]
    step: int = 0

    @property
    def active(self) -> list[int]:
        """The indices of the trials that have not ended."""
        return [i for i, trial in enumerate(self.trials) if not trial.ended]


@dataclass(frozen=True)
class Hook:
    """A call after every `every` steps, after the steps in `at`, and after the last step.

    The metrics of all earlier steps are recorded before the call, and its time does not count as training time.
    """

    call: Callable[[Training], None]
    every: int
    at: frozenset[int] = frozenset()

    def due(self, step: int, total_steps: int) -> bool:
        return step % self.every == 0 or step in self.at or step == total_steps


def plan_dispatches(
    step: int, total_steps: int, steps_per_execution: int, periods: Sequence[int], at: frozenset[int] = frozenset()
) -> Iterator[int]:
    """Yields the sizes of the dispatches that make the remaining steps.

    A dispatch has `steps_per_execution` steps if no hook is due before its last step, else a single step.
    """
    while step < total_steps:
        ends = [(step // every + 1) * every for every in periods] + [later for later in at if later > step]
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
    """Trains until `total_steps`, until all trials have ended, or until `should_stop()` is true after a dispatch.

    Each dispatch is queued before the metrics of the previous one are fetched, so that logging never stalls the device.

    Args:
        streams: an iterator of batches for each distinct seed of the trials.
        steps_per_execution: the number of steps that one call of the program makes if no hook is due in between. The
            default depends on the device.
        on_divergence: called with the index of a trial whose objective or gradient is NaN or infinite. Without it, an
            exception is raised.

    Raises:
        NonFiniteLossError: the objective or the gradient of a step is NaN or infinite, and there is no
            `on_divergence`.
    """
    periods = [hook.every for hook in hooks]
    at = frozenset[int]().union(*(hook.at for hook in hooks))
    size_of_full = steps_per_execution or devices.steps_per_execution(periods)
    sizes = plan_dispatches(training.step, total_steps, size_of_full, periods, at)
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
    """Adds a dispatch's steps, of `seconds` each, to the trials' progress, and logs those that are due."""
    if not (active := training.active):
        return
    first = training.trials[active[0]].progress.step
    # The gradient can overflow although the objective is finite.
    finite = np.isfinite(metrics.objective) & np.isfinite(metrics.grad_norm)
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


def _raise(training: Training, index: int) -> None:
    raise NonFiniteLossError(training.trials[index].progress.step)
