"""The loop: what `fit` calls, when and in which order, with counters in place of a model."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from minigpt_jax.train import loop
from minigpt_jax.train.loop import Hook, NonFiniteLossError, fit, plan
from minigpt_jax.train.metrics import Sums
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
def test_plan_covers_every_step_and_stops_where_hooks_fall(
    start: int, total: int, size: int, periods: list[int]
) -> None:
    sizes = list(plan(start, total, size, periods))
    assert sum(sizes) == total - start
    assert set(sizes) <= {1, size}
    ends = set(start + np.cumsum(sizes))
    assert {step for step in range(start + 1, total + 1) if any(step % every == 0 for every in periods)} <= ends


def test_plan_takes_whole_dispatches_where_it_can() -> None:
    assert list(plan(0, 20, 4, [10])) == [4, 4, 1, 1, 4, 4, 1, 1]
    assert list(plan(0, 8, 4, [4])) == [4, 4]


def test_a_plan_resumed_at_a_hook_is_the_plan_gone_on() -> None:
    whole = list(plan(0, 30, 4, [10]))
    for end in (10, 20):
        done = next(i for i in range(len(whole)) if sum(whole[:i]) == end)
        assert list(plan(end, 30, 4, [10])) == whole[done:]


class Value:
    """A metric still on its device: it tells when it is fetched."""

    def __init__(self, values: Iterable[float], fetched: Callable[[], None] = lambda: None) -> None:
        self.values, self.fetched = list(values), fetched

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.fetched()
        return np.array(self.values if len(self.values) > 1 else self.values[0], dtype)


class Machine:
    """Counts steps in place of training: step i has i tokens, 2 i nats, 3 i bytes, and its objective is i."""

    def __init__(self, bad: dict[int, float] | None = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.bad = bad or {}

    def dispatches(self, sizes: Iterable[int]) -> Iterator[tuple[int, str]]:
        for i, size in enumerate(sizes):
            yield size, f"batch {i}"

    def run_steps(self, state: Any, size: int, batches: Any) -> Any:
        self.events.append(("run", batches))
        steps = range(state + 1, state + size + 1)

        def column(times: float) -> Any:
            return np.array([times * step for step in steps]) if size > 1 else np.array(times * steps[0])

        objective = Value(
            (self.bad.get(step, float(step)) for step in steps), lambda: self.events.append(("fetch", batches))
        )
        return state + size, StepMetrics(Sums(column(2.0), column(1), column(3)), objective, column(0.5))

    def on_step(self, progress: Progress, metrics: StepMetrics) -> None:
        self.events.append(("step", progress.step, metrics.objective))

    def hook(self, name: str, every: int) -> Hook:
        return Hook(every, lambda state, progress: self.events.append((name, state, progress.step)))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == name]

    def fit(self, progress: Progress, sizes: Iterable[int], total: int, **options: Any) -> int:
        state: Any = progress.step
        options = {"on_step": self.on_step, **options}
        out: Any = fit(state, progress, self.dispatches(sizes), self.run_steps, total_steps=total, **options)
        return out


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 2, 2], [4, 1, 1], [6]])
def test_every_step_is_told_once_in_order(sizes: list[int]) -> None:
    machine, progress = Machine(), Progress()
    assert machine.fit(progress, sizes, 6) == 6
    assert machine.named("step") == [("step", i, float(i)) for i in range(1, 7)]
    assert (progress.step, progress.tokens) == (6, 21)
    assert progress.since_log == Sums(nats=42.0, tokens=21, bytes=63)
    assert progress.seconds > 0


def test_a_step_is_queued_before_the_one_before_is_fetched() -> None:
    machine = Machine()
    machine.fit(Progress(), [1, 1, 1], 3)
    assert [event for event in machine.events if event[0] != "step"] == [
        ("run", "batch 0"),
        ("run", "batch 1"),
        ("fetch", "batch 0"),
        ("run", "batch 2"),
        ("fetch", "batch 1"),
        ("fetch", "batch 2"),
    ]


def test_hooks_fall_at_their_periods_and_once_at_the_end() -> None:
    machine, progress = Machine(), Progress()
    hooks = [machine.hook("evaluate", 3), machine.hook("save", 4), machine.hook("last", 100)]
    machine.fit(progress, plan(0, 10, 2, [3, 4, 100]), 10, hooks=hooks)
    for name, at in {"evaluate": [3, 6, 9, 10], "save": [4, 8, 10], "last": [10]}.items():
        # The state is that of the step, and the metrics of all steps before are in.
        assert machine.named(name) == [(name, step, step) for step in at]
    order = [event[0] for event in machine.events if event[-1] == 10 and event[0] != "step"]
    assert order == ["evaluate", "save", "last"]


def test_a_period_that_ends_with_the_run_is_called_once() -> None:
    machine = Machine()
    machine.fit(Progress(), [1] * 6, 6, hooks=[machine.hook("save", 3)])
    assert machine.named("save") == [("save", 3, 3), ("save", 6, 6)]


def test_time_in_hooks_is_not_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    machine, progress = Machine(), Progress(seconds=100.0)

    def run_steps(state: Any, size: int, batches: Any) -> Any:
        clock[0] += 1.0
        return machine.run_steps(state, size, batches)

    def slow(state: Any, progress: Progress) -> None:
        clock[0] += 1000.0

    state: Any = 0
    fit(state, progress, machine.dispatches([1] * 6), run_steps, total_steps=6, hooks=[Hook(2, slow)])
    assert progress.seconds == pytest.approx(106.0)


def test_a_stop_falls_between_two_dispatches() -> None:
    machine, progress = Machine(), Progress()
    stop = lambda: len(machine.named("run")) == 3  # noqa: E731
    state = machine.fit(progress, [2] * 10, 20, hooks=[machine.hook("save", 4)], should_stop=stop)
    assert state == progress.step == 6
    assert [event[1] for event in machine.named("step")] == [1, 2, 3, 4, 5, 6]
    assert machine.named("save") == [("save", 4, 4)]  # saving at the stop is the caller's


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sizes", [[1] * 9, [3, 3, 3], [9]])
def test_a_loss_that_is_not_finite_stops_at_its_step(value: float, sizes: list[int]) -> None:
    machine = Machine(bad={5: value, 6: value})
    with pytest.raises(NonFiniteLossError, match="not finite at step 5") as raised:
        machine.fit(Progress(), sizes, 9, hooks=[machine.hook("save", 9)])
    assert raised.value.step == 5
    assert machine.named("step")[-1] == ("step", 4, 4.0)
    assert not machine.named("save")


def test_nothing_is_saved_at_a_step_that_is_not_finite() -> None:
    machine = Machine(bad={6: np.nan})
    with pytest.raises(NonFiniteLossError):
        machine.fit(Progress(), [1] * 9, 9, hooks=[machine.hook("save", 3)])
    assert machine.named("save") == [("save", 3, 3)]


def test_progress_goes_on_where_it_was_saved() -> None:
    """Cut between two training lines, so that the sums since the last one have to survive."""
    whole, progress = Machine(), Progress()
    whole.fit(progress, [1] * 7, 7)

    first, cut = Machine(), Progress()
    first.fit(cut, [1] * 4, 7)
    resumed = Progress.from_json(json.loads(json.dumps(cut.to_json())))
    assert resumed == cut
    assert isinstance(resumed.since_log, Sums)
    second = Machine()
    second.fit(resumed, [1] * 3, 7)
    assert first.events[-1][1:] == (4, 4.0)
    assert first.named("step") + second.named("step") == whole.named("step")
    assert (resumed.step, resumed.tokens, resumed.since_log) == (progress.step, progress.tokens, progress.since_log)


def test_on_step_may_empty_the_sums() -> None:
    """As the log does after each of its lines."""
    machine, progress, lines = Machine(), Progress(), []

    def log(progress: Progress, metrics: StepMetrics) -> None:
        assert isinstance(progress.tokens, int)
        if progress.step % 3 == 0:
            lines.append(progress.since_log)
            progress.since_log = Sums()

    machine.fit(progress, [1] * 7, 7, on_step=log)
    assert [sums.tokens for sums in lines] == [1 + 2 + 3, 4 + 5 + 6]
    assert progress.since_log.tokens == 7
