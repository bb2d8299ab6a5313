"""A worker: takes configurations from the study, trains them in stacks, and goes on until the sweep is finished."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig
from minigpt_jax.data.store import BatchSource
from minigpt_jax.errors import UserError
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.parallel import devices
from minigpt_jax.storage.run_dir import RunDir, check_room
from minigpt_jax.storage.trackers import check_trackers
from minigpt_jax.sweep import axes, results
from minigpt_jax.sweep.group import TrialGroup, record_end
from minigpt_jax.sweep.plan import Plan, Trial
from minigpt_jax.sweep.study import LEASE_SECONDS, Claim, Study
from minigpt_jax.sweep.table import Table
from minigpt_jax.train import memory, program
from minigpt_jax.train.state import Progress
from minigpt_jax.trial import environment
from minigpt_jax.trial.environment import Corpus
from minigpt_jax.trial.open_run import OpenRun
from minigpt_jax.trial.signals import stop_signals

STACK_ON_CPU, STACK = 8, 32
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a worker's part of a sweep ended: whether a signal stopped it, and the rows of results so far."""

    interrupted: bool
    rows: list[dict]


def sweep(
    plan: Plan,
    *,
    storage: str | None = None,
    lease: float = LEASE_SECONDS,
    most: int | None = None,
    source: BatchSource | None = None,
) -> Outcome:
    """Works on a sweep until all of its configurations are finished, by this worker or by others.

    Args:
        storage, lease: see `study.Study`.
        most: trials in one program, at most; memory may allow fewer.

    Raises:
        UserError: for what cannot work, before any compute is spent.
    """
    if most is not None and most < 1:
        raise UserError(f"--stack {most}: must be 1 or more")
    if lease <= 0:
        raise UserError(f"--lease {lease}: must be above 0")
    devices.check_types()
    check_trackers(plan.experiment.train.trackers)
    most = most or (STACK_ON_CPU if on_cpu() else STACK)
    files = RunDir(plan.folder)
    weights = 4 * sum(part.size for part in memory.matrices(plan.experiment))
    check_room(files, 3 * weights * (1 + plan.experiment.train.keep_checkpoints) * plan.trials * len(plan.seeds))
    library = _Library(source or environment.tf_data_batches())
    library.prepare(plan)
    with Study(plan, storage, lease) as study:
        plan.write()
        with stop_signals() as stopped, Table(plan, study.rows()) as table:
            worker = _Worker(study, library, table, most, stopped)
            worker.work()
        results.write(study)
        return Outcome(bool(stopped), study.rows())


class _Library:
    """Corpora made ready, each once."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self._ready: dict[tuple[DataConfig, TokenizerConfig], Corpus] = {}

    def prepare(self, plan: Plan) -> None:
        """Makes ready all that lists of values ask for, so that what cannot work is told at once."""
        parts = ("data.", "tokenizer.", "sample.", "model.positions")
        of_text = [a for a in plan.axes if a.field.startswith(parts) and not a.is_range]
        for values in itertools.islice(axes.grid(of_text), axes.MOST_CHECKED):
            experiment = axes.apply(plan.experiment, values)
            environment.check_samples(experiment, self.corpus(experiment).prepared.tokenizer)

    def corpus(self, experiment: Experiment) -> Corpus:
        key = (experiment.data, experiment.tokenizer)
        if key not in self._ready:
            self._ready[key] = environment.prepare(experiment)
        return self._ready[key]


class _Worker:
    def __init__(self, study: Study, library: _Library, table: Table, most: int, stopped: list[int]) -> None:
        self.study, self.library, self.table, self.most, self.stopped = study, library, table, most, stopped

    def work(self) -> None:
        while not self.stopped:
            claims = self.study.claim(self._claim_size())
            if claims:
                self.table.others(0)
                self._train(claims)
            elif (left := self.study.unfinished()) > 0:
                self.table.others(left)
                time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                return

    def _claim_size(self) -> int:
        """Configurations to take at a time: a stack's worth, but not what keeps other workers or the search waiting."""
        plan = self.study.plan
        configurations = max(1, self.most // len(plan.seeds))
        if plan.search == "tpe":  # learns from what is finished
            configurations = min(configurations, math.ceil(plan.trials / 4))
        fair = math.ceil(self.study.unfinished() / self.study.workers())
        return max(1, min(configurations, fair))

    def _train(self, claims: Sequence[Claim]) -> None:
        groups: dict[Experiment, list[Trial]] = {}
        for claim in claims:
            for seed in self.study.plan.seeds:
                if seed not in claim.done:
                    trial = self.study.plan.trial(claim.configuration, claim.values, seed)
                    groups.setdefault(program.shared_part(trial.experiment), []).append(trial)
            if set(claim.done) == set(self.study.plan.seeds):
                self.study.finish(claim.configuration)
        for trials in groups.values():
            self._train_group(trials)
        if self.stopped:
            for claim in claims:
                self.study.release(claim.configuration)

    def _train_group(self, trials: list[Trial]) -> None:
        waiting, most = list(trials), self.most
        while waiting and not self.stopped:
            batch = _whole_configurations(waiting, most)
            try:
                fitting = self._train_stack(batch)
            except UserError as error:
                self._fail(batch, str(error))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if len(batch) > 1:
                    most = -(-len(batch) // 2)
                    continue
                self._fail(batch, "out of memory, even alone: a smaller --train.batch-size may fit")
            else:
                if fitting < len(batch):
                    most = fitting
                    continue
            waiting = [trial for trial in waiting if trial not in batch]

    def _train_stack(self, trials: list[Trial]) -> int:
        """Trains the trials, if memory holds them all; returns how many it holds."""
        memory.check_memory(trials[0].experiment, copies=1)  # all of one shape
        corpus = self.library.corpus(trials[0].experiment)
        runs: list[tuple[Trial, OpenRun]] = []
        with contextlib.ExitStack() as opened:
            for trial in trials:
                try:
                    run = OpenRun(trial.experiment, trial.files, corpus, Path(self.study.plan.file))
                    runs.append((trial, opened.enter_context(contextlib.closing(run))))
                except UserError as error:
                    if not isinstance(error.__cause__, BlockingIOError):
                        raise
                    # Its worker is alive but slow: it will see that the trial is no longer its own, and let go.
                    self.study.release(trial.configuration)
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            runs = [(trial, run) for trial, run in runs if self.study.holds(trial.configuration)]
            if runs:
                group = TrialGroup(
                    self.study, runs, corpus, self.library.source, self.table, lambda: bool(self.stopped)
                )
                fitting = group.fitting()
                if fitting < len(runs):
                    return fitting
                group.train()
            return len(trials)

    def _fail(self, trials: Iterable[Trial], reason: str) -> None:
        for trial in trials:
            self.table.say(f"trial {trial.id} failed: {reason}")
            record_end(self.study, results.row(trial, "failed", Progress(), None), self.table, 0)


def _whole_configurations(trials: Sequence[Trial], most: int) -> list[Trial]:
    """The first trials, up to `most`, without cutting a configuration's seeds apart where that can be."""
    batch: list[Trial] = []
    for _, seeds in itertools.groupby(trials, key=lambda trial: trial.configuration):
        seeds = list(seeds)
        if batch and len(batch) + len(seeds) > most:
            break
        batch += seeds[:most]
    return batch
