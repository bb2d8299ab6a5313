"""The loop that drives the train step: dispatches ahead, settles metrics behind, calls hooks at their periods."""

import collections
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.train.step import StepMetrics


class NonFiniteLossError(Exception):
    """The objective of a step, or its gradient, is NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step}")
        self.step = step


class Hook(NamedTuple):
    """Called after every `every` steps, and after the last one, with all earlier steps' metrics settled."""

    every: int
    call: Callable[[TrainState, Progress], None]

    def due(self, step: int, total_steps: int) -> bool:
        return step % self.every == 0 or step == total_steps


def plan(step: int, total_steps: int, steps_per_dispatch: int, periods: Sequence[int]) -> Iterator[int]:
    """Splits the steps to come into dispatches: whole ones where no hook falls inside, single steps elsewhere."""
    while step < total_steps:
        boundary = min([total_steps, *((step // every + 1) * every for every in periods)])
        size = steps_per_dispatch if step + steps_per_dispatch <= boundary else 1
        yield size
        step += size


def fit(
    state: TrainState,
    progress: Progress,
    dispatches: Iterator[tuple[int, Any]],
    run_steps: Callable[[TrainState, int, Any], tuple[TrainState, StepMetrics]],
    *,
    total_steps: int,
    hooks: Sequence[Hook] = (),
    on_step: Callable[[Progress, StepMetrics], None] = lambda progress, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains until `total_steps`, or until `should_stop()` says so between two dispatches.

    A dispatch is queued before the metrics of the one before are fetched, so that logging never stalls the device.
    `progress` is updated in place; `on_step` is called for every step in order, once its metrics are known.

    Args:
        dispatches: (number of steps, their batches on the device), as `plan` cut them.
        run_steps: makes that many updates; its metrics have a leading axis of steps if there is more than one.

    Raises:
        NonFiniteLossError: at the first step whose objective or gradient is NaN or infinite.
    """
    pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
    mark = time.perf_counter()

    def settle() -> None:
        nonlocal mark
        size, out = pending.popleft()
        out = jax.device_get(out)
        now = time.perf_counter()
        for i in range(size):
            metrics_i = jax.tree.map(lambda x, i=i: np.asarray(x).reshape(size)[i].item(), out)
            progress.step += 1
            progress.seconds += (now - mark) / size
            progress.tokens += metrics_i.sums.tokens
            progress.since_log = progress.since_log.plus(metrics_i.sums)
            # A gradient can overflow where the loss does not; the weights are lost either way.
            if not (math.isfinite(metrics_i.objective) and math.isfinite(metrics_i.grad_norm)):
                raise NonFiniteLossError(progress.step)
            on_step(progress, metrics_i)
        mark = now

    step = progress.step
    for size, batches in dispatches:
        state, out = run_steps(state, size, batches)
        step += size
        pending.append((size, out))
        due = [hook for hook in hooks if hook.due(step, total_steps)]
        while len(pending) > (0 if due else 1):
            settle()
        for hook in due:
            hook.call(state, progress)
        if due:
            mark = time.perf_counter()
        if should_stop():
            break
    while pending:
        settle()
    return state
