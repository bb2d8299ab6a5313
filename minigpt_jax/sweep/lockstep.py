"""Training a stack from its first step to its last, with evaluation, pruning and saving on the way."""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from minigpt_jax.data.batch import Batch
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.parallel import devices
from minigpt_jax.report.objective import Figure
from minigpt_jax.sweep import results
from minigpt_jax.sweep.lane import Lane
from minigpt_jax.sweep.plan import Trial
from minigpt_jax.sweep.study import Study, survivors
from minigpt_jax.train import program as stack
from minigpt_jax.train.loop import plan
from minigpt_jax.train.metrics import Sums
from minigpt_jax.train.step import StepMetrics

RUNGS = (0.25, 0.5)
"""The shares of all steps after which the worse half is pruned."""
_COMPACT_AT = 0.75


class Show(Protocol):
    """Who is told how trials get on."""

    def step(self, trial: Trial, step: int, total_steps: int, sums: Sums) -> None: ...
    def ended(self, row: dict[str, Any], step: int, total_steps: int) -> None: ...


@dataclass(frozen=True)
class Corpus:
    """What a group of trials reads."""

    prepared: Prepared
    fingerprints: dict[str, str]
    source: BatchSource


def total_steps(trial: Trial, corpus: Corpus) -> int:
    """Steps that a trial takes."""
    settings = trial.experiment.train
    return settings.steps or settings.epochs * corpus.prepared.splits["train"].steps_per_epoch(settings.batch_size)


def score(figure: Figure, sums: Sums) -> float:
    """What a trial is ranked by; inf where it is not a number, so that it comes last."""
    value = getattr(sums, figure)
    return value if math.isfinite(value) else math.inf


def rungs(total: int) -> set[int]:
    """The steps after which a sweep may prune."""
    return {int(total * share) for share in RUNGS} - {0, total}


class Lockstep:
    """Trials of one program, trained in lockstep.

    Args:
        lanes: the trials, their run directories open.
        should_stop: asked after every dispatch; if so, all is saved and given back.
    """

    def __init__(
        self, study: Study, lanes: Sequence[Lane], corpus: Corpus, show: Show, should_stop: Callable[[], bool]
    ) -> None:
        self.study, self.lanes, self.corpus, self.show, self.should_stop = study, list(lanes), corpus, show, should_stop
        self.experiment, self.total = lanes[0].experiment, lanes[0].total_steps
        self.seeds = sorted({lane.trial.seed for lane in lanes})
        experiments = [lane.experiment for lane in lanes]
        self.dropout = any(experiment.model.dropout for experiment in experiments)
        self.program = stack.program(self.experiment, self.dropout, len(lanes))
        self.arrays = stack.lanes_of(experiments, [self.seeds.index(lane.trial.seed) for lane in lanes], self.total)
        self.places = list(range(len(lanes)))
        """Which lanes the stack holds, in its order; ended ones stay until there are enough of them."""
        per_epoch = corpus.prepared.splits["train"].steps_per_epoch(self.experiment.train.batch_size)
        self.evaluate_every = self.experiment.train.evaluate_every or per_epoch
        self.save_every = self.experiment.train.checkpoint_every or per_epoch
        self.rungs = rungs(self.total) if study.plan.prune else set()

    def width(self) -> int:
        """How many of the trials fit into memory at once."""
        size = self.experiment.train.batch_size
        batch = self.corpus.prepared.splits["train"].take(np.arange(size))
        batches = Batch(*(np.broadcast_to(x, (1, len(self.seeds), *x.shape)) for x in batch))
        return stack.fitting(self.experiment, self.dropout, self.arrays, batches)

    def run(self) -> None:
        """Trains all trials to their end, unless it has to stop."""
        start = self._start()
        state, stacked = self.state, self.program.stacked(self.arrays)
        pending: collections.deque[tuple[int, Any]] = collections.deque()
        mark = time.perf_counter()

        def settle() -> None:
            nonlocal mark
            size, out = pending.popleft()
            out = self.program.joined(out)
            now = time.perf_counter()
            self._settle(size, out, (now - mark) / size)
            mark = now

        step = start
        for size, batches in self._dispatches(start):
            state, out = self.program.compiled(stacked, batches)(state, stacked, batches)
            pending.append((size, out))
            step += size
            evaluate = step % self.evaluate_every == 0 or step in self.rungs or step == self.total
            due = evaluate or step % self.save_every == 0
            stop = self.should_stop()
            while len(pending) > (0 if due or stop else 1):
                settle()
            if not self._living():
                break
            if evaluate:
                self._evaluate(state, step)
            if due or stop:
                self._end_or_save(state, step, evaluate, save=stop or step % self.save_every == 0)
                if stop or not self._living():
                    break
                if len(self._living()) <= _COMPACT_AT * len(self.places):
                    state, stacked = self._compact(state)
                mark = time.perf_counter()
        while pending:
            settle()

    def _living(self) -> list[int]:
        return [i for i in self.places if not self.lanes[i].ended]

    def _start(self) -> int:
        """Sets the first state: of the latest step that all trials have a checkpoint of, or fresh."""
        state = self.program.init(self.program.stacked(self.arrays))
        saved = set.intersection(*(set(lane.checkpoints.whole_steps()) for lane in self.lanes))
        step = max((s for s in saved if s < self.total), default=0)
        if step:
            like = jax.tree.map(lambda x: x[0], self.program.joined(state))
            states = [jax.device_get(lane.restore(step, like)) for lane in self.lanes]
            state = self.program.stacked(jax.tree.map(lambda *leaves: np.stack(leaves), *states))
        for lane in self.lanes:
            lane.start()
        self.state = state
        return step

    def _dispatches(self, start: int) -> Iterator[tuple[int, Any]]:
        settings = self.experiment.train
        periods = [self.evaluate_every, self.save_every]
        # A rung is not a multiple of anything: training is planned from one to the next.
        ends = [*sorted(rung for rung in self.rungs if rung > start), self.total]
        begins = [start, *ends[:-1]]
        together = settings.steps_per_dispatch or devices.steps_per_dispatch(periods)
        plans = (plan(a, b, together, periods) for a, b in zip(begins, ends, strict=True))
        prepared, source = self.corpus.prepared, self.corpus.source
        seeded = [dataclasses.replace(self.experiment, seed=seed) for seed in self.seeds]
        streams = [prepared.training_batches(source, experiment, self.total, start) for experiment in seeded]

        def draw(size: int) -> Any:
            drawn = [next(stream) for _ in range(size) for stream in streams]
            shape = (size, len(streams))
            batches = jax.tree.map(lambda *arrays: np.stack(arrays).reshape(*shape, *arrays[0].shape), *drawn)
            return jax.device_put(batches) if self.program.devices == 1 else batches

        return devices.prefetch((size, draw(size)) for size in itertools.chain.from_iterable(plans))

    def _settle(self, size: int, out: StepMetrics, seconds: float) -> None:
        if not (living := self._living()):
            return
        every, first = self.experiment.train.log_every, self.lanes[living[0]].progress.step
        finite = np.isfinite(out.objective) & np.isfinite(out.grad_norm)
        nats, tokens, sizes = (np.asarray(x).tolist() for x in out.sums)
        for k in range(size):
            step = first + k + 1
            logs = step % every == 0 or step == self.total
            rates = np.asarray(self.program.learning_rate(self.arrays.hyper, step - 1)) if logs else None
            for place, i in enumerate(self.places):
                lane = self.lanes[i]
                if lane.ended:
                    continue
                lane.count(Sums(nats[place][k], tokens[place][k], sizes[place][k]), seconds)
                if not finite[place, k]:
                    lane.valid = None
                    self._end(lane, "diverged")
                elif rates is not None:
                    logged = lane.log(float(rates[i]), float(out.grad_norm[place, k]))
                    self.show.step(lane.trial, step, self.total, logged)

    def _evaluate(self, state: Any, step: int) -> None:
        rows, size = self.corpus.prepared.splits["valid"], self.experiment.train.batch_size
        queued = [self.program.evaluate(state.weights, batch) for batch in rows.in_order(size)]
        parts = [Sums(*(np.asarray(x).tolist() for x in self.program.joined(sums))) for sums in queued]
        for place, i in enumerate(self.places):
            lane = self.lanes[i]
            if lane.ended:
                continue
            total = Sums()
            for part in parts:
                total = total.plus(Sums(part.nats[place], part.tokens[place], part.bytes[place]))
            lane.evaluated(total)
            self.show.step(lane.trial, step, self.total, total)

    def _end_or_save(self, state: Any, step: int, evaluated: bool, save: bool) -> None:
        """Ends what is complete, pruned or no longer ours, and saves the others if asked."""
        for configuration in {self.lanes[i].trial.configuration for i in self._living()}:
            if not self.study.holds(configuration):  # another worker took this one for lost
                for i in self._living():
                    if self.lanes[i].trial.configuration == configuration:
                        self.lanes[i].close()
        pruned = self._pruned(step) if step in self.rungs else set()
        complete = step == self.total
        if not (complete or pruned or save):
            return
        host = self.program.joined(state)
        saved = []
        for place, i in enumerate(self.places):
            lane = self.lanes[i]
            if lane.ended:
                continue
            ends = complete or lane.trial.configuration in pruned
            if ends or save:
                own = devices.put_replicated(jax.tree.map(lambda x, place=place: x[place], host))
                lane.save(own, evaluated)
                saved.append((lane, own, ends))
        for lane, own, ends in saved:
            if complete:
                lane.sample(own.weights)
            if ends:
                diverged = lane.valid is not None and not math.isfinite(score(self.study.plan.figure, lane.valid))
                self._end(lane, "diverged" if diverged else "complete" if complete else "pruned")

    def _pruned(self, step: int) -> set[int]:
        """The configurations that end at this rung. One whose seeds are not all here goes on: its mean is not known."""
        scores: dict[int, list[float]] = collections.defaultdict(list)
        for i in self._living():
            lane = self.lanes[i]
            assert lane.valid is not None
            scores[lane.trial.configuration].append(score(self.study.plan.figure, lane.valid))
        seeds = len(self.study.plan.seeds)
        means = {c: math.fsum(values) / seeds for c, values in scores.items() if len(values) == seeds}
        for configuration, mean in means.items():
            self.study.report(configuration, step, mean)
        return set(means) - survivors(means, self.study.scores_at(step)) if means else set()

    def _end(self, lane: Lane, status: str) -> None:
        """Writes down what came of a trial; its configuration is finished with its last seed."""
        lane.close()
        end(self.study, results.row(lane.trial, status, lane.progress, lane.valid), self.show, self.total)

    def _compact(self, state: Any) -> tuple[Any, Any]:
        """The stack without the trials that have ended."""
        living = self._living()
        kept = np.array([self.places.index(i) for i in living])
        host = jax.tree.map(lambda x: x[kept], self.program.joined(state))
        self.places = living
        lanes = jax.tree.map(lambda x: x[np.array(living)], self.arrays)
        self.program = stack.program(self.experiment, self.dropout, len(living))
        return self.program.stacked(host), self.program.stacked(lanes)


def end(study: Study, row: dict[str, Any], show: Show, total: int) -> None:
    """Puts a row down in the study and in the results, unless the trial is another worker's by now."""
    if not study.record(row["configuration"], row["seed"], row):
        return
    done = [other["seed"] for other in study.rows() if other["configuration"] == row["configuration"]]
    if set(done) == set(study.plan.seeds):
        study.finish(row["configuration"])
    results.write(study)
    show.ended(row, row["step"], total)
