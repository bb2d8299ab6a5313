"""The loop: what `fit` calls, and in which order, with counters instead of a model."""

import dataclasses
import itertools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from minigpt_jax.train import loop
from minigpt_jax.train.loop import CountedTrial, Hook, NonFiniteLossError, Training, fit, plan_dispatches
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress
from minigpt_jax.train.step import StepMetrics

PERIODS = [
    (0, 7, 1, []),
    (0, 12, 4, []),
    (0, 11, 4, []),
    (0, 20, 4, [10]),
    (0, 20, 4, [6, 10]),
    (3, 20, 4, [10]),
    (0, 9, 100, [2]),
    (5, 5, 2, [1]),
]


@pytest.mark.parametrize(("start", "total", "size", "periods"), PERIODS)
def test_a_plan_covers_every_step_and_ends_dispatches_at_hooks(
    start: int, total: int, size: int, periods: list[int]
) -> None:
    sizes = list(plan_dispatches(start, total, size, periods))
    assert sum(sizes) == total - start
    assert set(sizes) <= {1, size}
    ends = set(start + np.cumsum(sizes))
    assert {step for step in range(start + 1, total + 1) if any(step % every == 0 for every in periods)} <= ends


def test_a_plan_uses_full_dispatches_if_possible() -> None:
    assert list(plan_dispatches(0, 20, 4, [10])) == [4, 4, 1, 1, 4, 4, 1, 1]
    assert list(plan_dispatches(0, 8, 4, [4])) == [4, 4]


def test_a_plan_resumed_at_a_hook_equals_the_rest_of_the_whole_plan() -> None:
    whole = list(plan_dispatches(0, 30, 4, [10]))
    for end in (10, 20):
        done = next(i for i in range(len(whole)) if sum(whole[:i]) == end)
        assert list(plan_dispatches(end, 30, 4, [10])) == whole[done:]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_plan_ends_dispatches_at_given_steps(size: int) -> None:
    ends = np.cumsum(list(plan_dispatches(0, 20, size, [10], frozenset({7, 13}))))
    assert {7, 10, 13, 20} <= set(ends)


class Machine:
    """A program that counts steps instead of training.

    Step i has i tokens, 2 i nats and 3 i bytes; its objective and the gradient's norm are i. With several trials, each
    has the same figures.
    """

    def __init__(self, bad: dict[int, float] | None = None, trials: int = 1) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.bad, self.count = bad or {}, trials
        self.trials = [Recorded(self, i) for i in range(trials)]
        self.drawn = itertools.count()

    def draw(self, streams: Any, size: int) -> str:
        return f"batch {next(self.drawn)}"

    def steps(self, state: Any, inputs: Any, batches: Any, size: int) -> Any:
        self.events.append(("run", batches))
        return state + size, (batches, range(state + 1, state + size + 1))

    def fetch(self, metrics: Any, size: int) -> StepMetrics:
        batches, steps = metrics
        self.events.append(("fetch", batches))
        assert len(steps) == size

        def columns(values: Iterable[float]) -> np.ndarray:
            return np.tile(np.array(list(values)), (self.count, 1))

        sums = LossSums(columns(2.0 * i for i in steps), columns(steps), columns(3 * i for i in steps))
        objective = columns(float(i) for i in steps)
        objective[-1] = [self.bad.get(i, float(i)) for i in steps]  # only the last trial diverges
        return StepMetrics(sums, objective, columns(float(i) for i in steps))

    def learning_rates(self, inputs: Any, step: int) -> list[float]:
        return [0.1 * step + index for index in range(self.count)]

    def hook(self, name: str, every: int) -> Hook:
        record = lambda training: self.events.append((name, training.state, training.trials[0].progress.step))  # noqa: E731
        return Hook(record, every)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == name]

    def fit(self, total: int, start: Progress | None = None, **options: Any) -> Any:
        """Trains from `start`; returns the state, which is the number of steps."""
        for trial in self.trials:
            trial.progress = start or trial.progress
        program: Any = self
        state: Any = self.trials[0].progress.step
        inputs: Any = None
        training = Training(program, inputs, state, self.trials, state)
        fit(training, [], total, **{"steps_per_execution": 1, **options})
        return training.state


class Recorded(CountedTrial):
    def __init__(self, machine: Machine, index: int) -> None:
        super().__init__()
        self.machine, self.index = machine, index

    def log(self, learning_rate: float, grad_norm: float) -> None:
        assert learning_rate == pytest.approx(0.1 * (self.progress.step - 1) + self.index)
        self.machine.events.append(("log", self.progress.step, grad_norm))


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_every_step_is_counted_once_and_logged_in_order(size: int) -> None:
    machine = Machine()
    assert machine.fit(6, steps_per_execution=size) == 6
    progress = machine.trials[0].progress
    assert machine.named("log") == [("log", i, float(i)) for i in range(1, 7)]
    assert (progress.step, progress.tokens) == (6, 21)
    assert progress.since_log == LossSums(nats=42.0, tokens=21, bytes=63)
    assert progress.seconds > 0


@pytest.mark.parametrize(("total", "every", "logged"), [(7, 3, [3, 6, 7]), (6, 3, [3, 6]), (2, 5, [2])])
def test_steps_are_logged_at_their_period_and_at_the_end(total: int, every: int, logged: list[int]) -> None:
    machine = Machine()
    machine.fit(total, log_every=every, steps_per_execution=2)
    assert [event[1] for event in machine.named("log")] == logged


def test_a_dispatch_is_queued_before_the_metrics_of_the_previous_one_are_fetched() -> None:
    machine = Machine()
    machine.fit(3)
    assert [event for event in machine.events if event[0] != "log"] == [
        ("run", "batch 0"),
        ("run", "batch 1"),
        ("fetch", "batch 0"),
        ("run", "batch 2"),
        ("fetch", "batch 1"),
        ("fetch", "batch 2"),
    ]


def test_hooks_are_called_at_their_periods_and_once_at_the_end() -> None:
    machine = Machine()
    hooks = [machine.hook("evaluate", 3), machine.hook("save", 4), machine.hook("last", 100)]
    machine.fit(10, steps_per_execution=2, hooks=hooks)
    for name, at in {"evaluate": [3, 6, 9, 10], "save": [4, 8, 10], "last": [10]}.items():
        # The state is that after this step, and the metrics of all earlier steps are recorded.
        assert machine.named(name) == [(name, step, step) for step in at]
    order = [event[0] for event in machine.events if event[-1] == 10 and event[0] != "log"]
    assert order == ["evaluate", "save", "last"]


def test_a_hook_is_called_at_given_steps() -> None:
    machine = Machine()
    hook = dataclasses.replace(machine.hook("rung", 100), at=frozenset({3, 5}))
    machine.fit(8, steps_per_execution=4, hooks=[hook])
    assert machine.named("rung") == [("rung", step, step) for step in (3, 5, 8)]


def test_a_hook_due_at_the_last_step_is_called_once_there() -> None:
    machine = Machine()
    machine.fit(6, hooks=[machine.hook("save", 3)])
    assert machine.named("save") == [("save", 3, 3), ("save", 6, 6)]


def test_training_time_leaves_out_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    machine, progress = Machine(), Progress(seconds=100.0)
    steps = machine.steps

    def slow_steps(*arguments: Any) -> Any:
        clock[0] += 1.0
        return steps(*arguments)

    def slow_hook(training: Training) -> None:
        clock[0] += 1000.0

    monkeypatch.setattr(machine, "steps", slow_steps)
    machine.fit(6, progress, hooks=[Hook(slow_hook, 2)])
    assert progress.seconds == pytest.approx(106.0)


def test_training_stops_after_a_dispatch() -> None:
    machine = Machine()
    stop = lambda: len(machine.named("run")) == 3  # noqa: E731
    state = machine.fit(20, steps_per_execution=2, hooks=[machine.hook("save", 4)], should_stop=stop)
    assert state == machine.trials[0].progress.step == 6
    assert [event[1] for event in machine.named("log")] == [1, 2, 3, 4, 5, 6]
    assert machine.named("save") == [("save", 4, 4)]  # the caller saves after a stop


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_training_stops_at_a_loss_that_is_not_finite(value: float, size: int) -> None:
    machine = Machine(bad={5: value, 6: value})
    with pytest.raises(NonFiniteLossError, match="not finite at step 5") as raised:
        machine.fit(9, steps_per_execution=size, hooks=[machine.hook("save", 9)])
    assert raised.value.step == 5
    assert machine.named("log")[-1] == ("log", 4, 4.0)
    assert not machine.named("save")


def test_nothing_is_saved_at_a_step_that_is_not_finite() -> None:
    machine = Machine(bad={6: np.nan})
    with pytest.raises(NonFiniteLossError):
        machine.fit(9, hooks=[machine.hook("save", 3)])
    assert machine.named("save") == [("save", 3, 3)]


def test_the_others_continue_after_a_trial_diverges() -> None:
    machine = Machine(bad={4: np.nan}, trials=3)

    def end(training: Training, index: int) -> None:
        training.trials[index].ended = True

    assert machine.fit(6, steps_per_execution=2, on_divergence=end) == 6
    assert [trial.progress.step for trial in machine.trials] == [6, 6, 4]


def test_training_ends_when_all_trials_have_ended() -> None:
    machine = Machine(bad={4: np.nan})

    def end(training: Training, index: int) -> None:
        training.trials[index].ended = True

    machine.fit(60, on_divergence=end, hooks=[machine.hook("save", 4)])
    assert len(machine.named("run")) == 4
    assert not machine.named("save")


def test_saved_progress_is_continued() -> None:
    """The run is cut between two training lines, so the sums since the last line must be saved."""
    whole, progress = Machine(), Progress()
    whole.fit(7, progress)

    first, cut = Machine(), Progress()
    first.fit(4, cut)
    resumed = Progress.from_json(json.loads(json.dumps(cut.to_json())))
    assert resumed == cut
    assert isinstance(resumed.since_log, LossSums)
    second = Machine()
    second.fit(7, resumed)
    assert first.named("log") + second.named("log") == whole.named("log")
    assert (resumed.step, resumed.tokens, resumed.since_log) == (progress.step, progress.tokens, progress.since_log)
