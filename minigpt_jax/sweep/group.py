"""Trains a group of trials that share a program. Leases, pruning and compaction are hooks of the training loop."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from minigpt_jax.data.batch import Batch
from minigpt_jax.data.store import BatchSource
from minigpt_jax.report.objective import Figure
from minigpt_jax.sweep import results
from minigpt_jax.sweep.plan import Trial
from minigpt_jax.sweep.study import Study, survivors
from minigpt_jax.train import program
from minigpt_jax.train.loop import Hook, Training, fit
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.trial import initial
from minigpt_jax.trial.environment import Corpus
from minigpt_jax.trial.open_run import OpenRun

RUNGS = (0.25, 0.5)
"""The fractions of the steps after which the worse half of the configurations is pruned."""
_COMPACT_AT = 0.75
"""The stack is rebuilt without its ended trials once at most this fraction of its trials is active."""


@runtime_checkable
class SweepListener(Protocol):
    """Is notified of the progress of a sweep's trials, to display it."""

    def step(self, trial: Trial, step: int, total_steps: int, sums: LossSums) -> None: ...
    def ended(self, row: dict[str, Any], step: int, total_steps: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class _TrialListener:
    """Passes the progress of one trial's run on to the listener of the sweep."""

    trial: Trial
    total_steps: int
    listener: SweepListener

    def advanced(self, step: int) -> None: ...

    def logged(self, step: int, sums: LossSums, tokens_per_second: float) -> None:
        self.listener.step(self.trial, step, self.total_steps, sums)

    def evaluated(self, step: int, sums: LossSums) -> None:
        self.listener.step(self.trial, step, self.total_steps, sums)


def score(figure: Figure, sums: LossSums) -> float:
    """The score that ranks a trial: the figure, or inf if the figure is not finite, so that the trial ranks last."""
    value = getattr(sums, figure)
    return value if math.isfinite(value) else math.inf


def rungs(total: int) -> set[int]:
    """The steps after which a sweep of `total` steps prunes."""
    return {int(total * share) for share in RUNGS} - {0, total}


class TrialGroup:
    """Trials of a sweep that share a program and a step to resume from, with their open run directories.

    Args:
        runs: each trial with its open run.
        start: the step that all of them resume from, of which each has an intact checkpoint, or 0.
        should_stop: called after every dispatch. If it returns True, training stops and the active trials are saved.
    """

    def __init__(
        self,
        study: Study,
        runs: Sequence[tuple[Trial, OpenRun]],
        start: int,
        corpus: Corpus,
        source: BatchSource,
        listener: SweepListener,
        should_stop: Callable[[], bool],
    ) -> None:
        self.study, self.start, self.corpus, self.source = study, start, corpus, source
        self.listener, self.should_stop = listener, should_stop
        self.runs, self.trial_of = [run for _, run in runs], {run: trial for trial, run in runs}
        self.experiment, self.total = self.runs[0].experiment, self.runs[0].total_steps
        self.seeds = sorted({trial.seed for trial, _ in runs})
        experiments = [run.experiment for run in self.runs]
        self.dropout = any(experiment.model.dropout for experiment in experiments)
        streams = [self.seeds.index(trial.seed) for trial, _ in runs]
        self.inputs = program.stack_inputs(experiments, streams, self.total)
        per_epoch = corpus.steps_per_epoch(self.experiment)
        self.evaluate_every = self.experiment.train.evaluate_every or per_epoch
        self.save_every = self.experiment.train.checkpoint_every or per_epoch
        self.rungs = frozenset(rungs(self.total)) if study.plan.prune else frozenset()

    def fitting(self) -> int:
        """The number of trials that fit into memory together."""
        size = self.experiment.train.batch_size
        batch = self.corpus.prepared.splits["train"].take(np.arange(size))
        batches = Batch(*(np.broadcast_to(x, (1, len(self.seeds), *x.shape)) for x in batch))
        return program.fitting_trials(self.experiment, self.dropout, self.inputs, batches)

    def train(self) -> None:
        """Trains all trials to their ends, unless `should_stop` returns True before."""
        training = self._start()
        seeded = [dataclasses.replace(self.experiment, seed=seed) for seed in self.seeds]
        prepared = self.corpus.prepared
        fit(
            training,
            [prepared.training_batches(self.source, experiment, self.total, self.start) for experiment in seeded],
            self.total,
            log_every=self.experiment.train.log_every,
            steps_per_execution=self.experiment.train.steps_per_execution,
            hooks=[
                Hook(self._evaluate, self.evaluate_every, self.rungs),
                Hook(self._save_and_end, self.save_every, self.rungs),
                Hook(self._compact, self.evaluate_every, self.rungs),
            ],
            on_divergence=self._diverged,
            should_stop=self.should_stop,
        )
        if training.active:  # `should_stop` ended the training
            self._close_lost(training)
            self._save(training, training.active)

    def _start(self) -> Training:
        """Resumes from the checkpoints of the step `start`, or starts from the initial weights at step 0."""
        stack = program.stack(self.experiment, self.dropout, len(self.runs))
        inputs = stack.stacked(self.inputs)
        state = stack.init(inputs)
        if self.start:
            like = stack.states(state)(0)
            state = stack.from_states([run.restore(like, self.start) for run in self.runs])
        elif (lm := self.study.plan.init_from) is not None:
            fresh = stack.states(state)
            state = stack.from_states(
                [initial.with_weights(fresh(i), lm, run.experiment) for i, run in enumerate(self.runs)]
            )
        for run in self.runs:
            run.start(_TrialListener(self.trial_of[run], self.total, self.listener))
        return Training(stack, inputs, state, self.runs, self.start)

    def _evaluate(self, training: Training) -> None:
        rows, size = self.corpus.prepared.splits["valid"], self.experiment.train.batch_size
        sums = training.program.evaluate(training.state.weights, rows, size)
        for i in training.active:
            training.trials[i].evaluated(sums[i])
        self._close_lost(training)

    def _close_lost(self, training: Training) -> None:
        """Closes the trials that another worker has claimed because this worker's lease expired."""
        runs = [training.trials[i] for i in training.active]
        for configuration in {self.trial_of[run].configuration for run in runs}:
            if not self.study.holds(configuration):
                for run in runs:
                    if self.trial_of[run].configuration == configuration:
                        run.close()

    def _save_and_end(self, training: Training) -> None:
        """Saves the trials that are due, and ends those that are complete or pruned."""
        self._close_lost(training)
        step, complete = training.step, training.step == self.total
        pruned = self._pruned(training) if step in self.rungs else set()
        ending = [i for i in training.active if complete or self.trial_of[training.trials[i]].configuration in pruned]
        states = self._save(training, training.active if step % self.save_every == 0 else ending)
        for i in ending:
            run = training.trials[i]
            if complete:
                run.sample(states[i].weights)
            diverged = run.valid is not None and not math.isfinite(score(self.study.plan.figure, run.valid))
            self._end(run, "diverged" if diverged else "complete" if complete else "pruned")

    def _save(self, training: Training, indices: Sequence[int]) -> dict[int, Any]:
        """Saves the trials with these indices, and returns their states by index."""
        if not indices:
            return {}
        state_of = training.program.states(training.state)
        states = {i: state_of(i) for i in indices}
        for i, state in states.items():
            training.trials[i].save(state)
        return states

    def _pruned(self, training: Training) -> set[int]:
        """The configurations that are pruned at this rung."""
        scores: dict[int, list[float]] = collections.defaultdict(list)
        for run in (training.trials[i] for i in training.active):
            scores[self.trial_of[run].configuration].append(score(self.study.plan.figure, run.valid))
        return pruned_configurations(self.study, training.step, scores)

    def _diverged(self, training: Training, index: int) -> None:
        training.trials[index].valid = None
        self._end(training.trials[index], "diverged")

    def _end(self, run: OpenRun, status: str) -> None:
        """Closes a trial and records its result. The last seed of a configuration also finishes the configuration."""
        run.close()
        row = results.row(self.trial_of[run], status, run.progress, run.valid, run.experiment)
        record_end(self.study, row, self.listener, self.total)

    def _compact(self, training: Training) -> None:
        """Rebuilds the stack without its ended trials, once enough of them have ended."""
        active = training.active
        if len(active) > _COMPACT_AT * len(training.trials):
            return
        assert isinstance(training.program, program.Stack)
        host = jax.tree.map(lambda x: x[np.array(active)], training.program.joined(training.state))
        training.trials = [training.trials[i] for i in active]
        kept = np.array([self.runs.index(run) for run in training.trials])
        stack = program.stack(self.experiment, self.dropout, len(active))
        training.program, training.state = stack, stack.stacked(host)
        training.inputs = stack.stacked(jax.tree.map(lambda x: x[kept], self.inputs))


def pruned_configurations(study: Study, step: int, scores: dict[int, list[float]]) -> set[int]:
    """Reports the mean score of each configuration at a rung, and returns the configurations to prune there.

    A configuration without the scores of all seeds is not pruned, because its mean is unknown.

    Args:
        scores: the scores of each configuration's active seeds.
    """
    seeds = len(study.plan.seeds)
    means = {c: math.fsum(values) / seeds for c, values in scores.items() if len(values) == seeds}
    for configuration, mean in means.items():
        study.report(configuration, step, mean)
    return set(means) - survivors(means, study.scores_at(step)) if means else set()


def record_end(study: Study, row: dict[str, Any], listener: SweepListener, total: int) -> None:
    """Records a row in the study and in the files of results, unless another worker has claimed the trial."""
    if not study.record(row["configuration"], row["seed"], row):
        return
    done = [other["seed"] for other in study.rows() if other["configuration"] == row["configuration"]]
    if set(done) == set(study.plan.seeds):
        study.finish(row["configuration"])
    results.write(study)
    listener.ended(row, row["step"], total)
