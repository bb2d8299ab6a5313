"""A worker of a sweep. It claims configurations and trains them in stacks until the sweep is finished."""

import contextlib
import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from minigpt_jax import config
from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig
from minigpt_jax.data.store import BatchSource
from minigpt_jax.errors import UserError
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.parallel import devices
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import InUseError, RunDir, bytes_needed, check_room
from minigpt_jax.storage.trackers import check_trackers
from minigpt_jax.sweep import axes, results
from minigpt_jax.sweep.group import TrialGroup, record_end
from minigpt_jax.sweep.plan import Plan, Trial
from minigpt_jax.sweep.study import LEASE_SECONDS, Claim, Study
from minigpt_jax.sweep.table import Table
from minigpt_jax.tokenizer import Tokenizer
from minigpt_jax.train import memory, program
from minigpt_jax.train.state import Progress
from minigpt_jax.trial import environment, initial
from minigpt_jax.trial.environment import Corpus
from minigpt_jax.trial.open_run import OpenRun
from minigpt_jax.trial.signals import stop_signals

STACK_ON_CPU, STACK = 8, 32
"""Trials in one program by default, on a CPU and on accelerators, if they fit into memory."""
SECONDS_BETWEEN_POLLS = 1.0
MAX_LEASE_SECONDS = 86400


@dataclass(frozen=True)
class Outcome:
    """The outcome of a worker: whether a signal stopped it, and the rows of results so far, of all workers."""

    interrupted: bool
    rows: list[dict]


def sweep(
    plan: Plan,
    *,
    storage: str | None = None,
    lease: float = LEASE_SECONDS,
    max_trials: int | None = None,
    source: BatchSource | None = None,
) -> Outcome:
    """Trains a sweep's configurations until this worker and others have finished all of them, or until a signal.

    Args:
        storage, lease: see `study.Study`.
        max_trials: the largest number of trials in one program. Fewer are trained together if memory is short.
        source: makes the batches of training; by default from tf.data.

    Raises:
        UserError: the sweep cannot work with these settings, on this machine or with this storage. It is raised before
            any training.
    """
    if max_trials is not None and max_trials < 1:
        raise UserError(f"--stack {max_trials}: must be 1 or more")
    if not 0 < lease <= MAX_LEASE_SECONDS:
        raise UserError(f"--lease {lease}: must be above 0 and at most {MAX_LEASE_SECONDS}, which is a day")
    devices.check_types()
    check_trackers(plan.experiment.train.trackers)
    max_trials = max_trials or (STACK_ON_CPU if on_cpu() else STACK)
    files = RunDir(plan.folder)
    check_room(files, 0, "--name")
    tokenizer = None if plan.init_from is None else plan.init_from.tokenizer
    library = _Library(source or environment.tf_data_batches(), tokenizer)
    library.prepare(plan)
    study = Study(plan, storage, lease)
    weights = 4 * sum(part.size for part in memory.matrices(plan.experiment))
    trials = study.unfinished() * len(plan.seeds)
    check_room(files, bytes_needed(weights, plan.experiment.train.keep_checkpoints) * trials, "--name")
    with study:
        plan.write()
        with stop_signals() as stopped, Table(plan, study.rows()) as table:
            worker = _Worker(study, library, table, max_trials, stopped)
            worker.work()
        results.write(study)
        return Outcome(bool(stopped), study.rows())


class _Library:
    """The prepared corpora of the trials. Each corpus is prepared once."""

    def __init__(self, source: BatchSource, tokenizer: Tokenizer | None) -> None:
        self.source, self._tokenizer = source, tokenizer
        self._ready: dict[tuple[DataConfig, TokenizerConfig], Corpus] = {}

    def prepare(self, plan: Plan) -> None:
        """Prepares the corpora of all listed values, so that mistakes in them are reported before any training."""
        parts = ("data.", "tokenizer.", "sample.", "model.positions")
        of_text = [a for a in plan.axes if a.field.startswith(parts) and not a.is_range]
        for values in axes.grid(of_text):
            experiment = axes.apply(plan.experiment, values)
            environment.check_samples(experiment, self.corpus(experiment).prepared.tokenizer)

    def corpus(self, experiment: Experiment) -> Corpus:
        key = (experiment.data, experiment.tokenizer)
        if key not in self._ready:
            self._ready[key] = environment.prepare(experiment, self._tokenizer)
        return self._ready[key]


class _Worker:
    def __init__(self, study: Study, library: _Library, table: Table, max_trials: int, stopped: list[int]) -> None:
        self.study, self.library, self.table = study, library, table
        self.max_trials, self.stopped = max_trials, stopped
        init_from = study.plan.init_from
        self._origin = None if init_from is None else initial.origin(init_from)
        self._in_use: dict[int, None] = {}
        """The configurations of which another process uses a run directory, the one tried least recently first."""

    def work(self) -> None:
        while not self.stopped:
            claims = self.study.claim(self._claim_size(), last=self._in_use)
            if claims:
                self.table.waiting(0)
                if all(claim.configuration in self._in_use for claim in claims):  # there is nothing else to train
                    time.sleep(SECONDS_BETWEEN_POLLS)
                self._train(claims)
            elif (left := self.study.unfinished()) > 0:
                self.table.waiting(left)
                time.sleep(SECONDS_BETWEEN_POLLS)
            else:
                return

    def _claim_size(self) -> int:
        """The number of configurations to claim: those of a full stack, or fewer to leave some to other workers.

        TPE learns from finished configurations, so at most a quarter of its configurations is claimed at once.
        """
        plan = self.study.plan
        configurations = max(1, self.max_trials // len(plan.seeds))
        if plan.search == "tpe":
            configurations = min(configurations, math.ceil(plan.trials / 4))
        fair = math.ceil(self.study.unfinished() / self.study.workers())
        return max(1, min(configurations, fair))

    def _train(self, claims: Sequence[Claim]) -> None:
        groups: dict[Experiment, list[Trial]] = {}
        for claim in claims:
            for seed in self.study.plan.seeds:
                if seed not in claim.done:
                    trial = self.study.plan.trial(claim.configuration, claim.values, seed)
                    try:
                        config.validate(trial.experiment)  # a value between the ends of a range may be invalid
                    except UserError as error:
                        self._fail([trial], str(error))
                        continue
                    groups.setdefault(program.shared_part(trial.experiment), []).append(trial)
            if set(claim.done) == set(self.study.plan.seeds):
                self.study.finish(claim.configuration)
        for trials in groups.values():
            self._train_group(trials)
        if self.stopped:
            for claim in claims:
                self.study.release(claim.configuration)

    def _train_group(self, trials: Sequence[Trial]) -> None:
        """Trains trials of equal shapes, in stacks of trials that resume from the same step."""
        try:
            memory.check_memory(trials[0].experiment, copies=1)
            corpus = self.library.corpus(trials[0].experiment)
        except UserError as error:
            self._fail(trials, str(error))
            return
        waiting, max_trials, saved = list(trials), self.max_trials, {trial.id: _saved(trial) for trial in trials}
        start = {trial.id: _start(trial, trials, saved, corpus) for trial in trials}
        while waiting and not self.stopped:
            same = [trial for trial in waiting if start[trial.id] == start[waiting[0].id]]
            batch = _whole_configurations(same, max_trials)
            ended: set[str] = set()
            try:
                fitting = self._train_stack(batch, start[batch[0].id], saved, ended, corpus)
            except UserError as error:
                self._fail(batch, str(error))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if len(batch) > 1:
                    max_trials = -(-len(batch) // 2)
                    waiting = [trial for trial in waiting if trial.id not in ended]
                    continue
                self._fail(batch, "this trial alone does not fit into memory; a smaller --train.batch-size may fit")
            else:
                if fitting < len(batch):
                    max_trials = fitting
                    waiting = [trial for trial in waiting if trial.id not in ended]
                    continue
            waiting = [trial for trial in waiting if trial not in batch]

    def _train_stack(
        self, trials: Sequence[Trial], start: int, saved: Mapping[str, Collection[int]], ended: set[str], corpus: Corpus
    ) -> int:
        """Trains the trials from the step `start` if all of them fit into memory. Returns the number that fits.

        Args:
            saved: the steps of which each trial had an intact checkpoint when its start was chosen.
            ended: gets the trials that have failed or been given up before the training.
        """
        runs: list[tuple[Trial, OpenRun]] = []
        with contextlib.ExitStack() as opened:
            for trial in trials:
                try:
                    run = OpenRun(trial.experiment, trial.files, corpus, Path(self.study.plan.file), self._origin)
                except InUseError:
                    self._postpone(trial)
                except UserError as error:
                    self._fail([trial], str(error))
                    ended.add(trial.id)
                else:
                    runs.append((trial, opened.enter_context(contextlib.closing(run))))
                    if set(run.checkpoints.intact_steps()) != saved[trial.id]:  # another process has just left it
                        self._postpone(trial)
            ended.update(trial.id for trial in trials if not self.study.holds(trial.configuration))
            for trial, run in runs:
                if trial.id in ended:
                    run.close()  # at once, as another worker may claim it
            runs = [(trial, run) for trial, run in runs if trial.id not in ended]
            if runs:
                group = TrialGroup(
                    self.study, runs, start, corpus, self.library.source, self.table, lambda: bool(self.stopped)
                )
                fitting = group.fitting()
                if fitting < len(runs):
                    return fitting
                group.train()
                for trial, _ in runs:
                    self._in_use.pop(trial.configuration, None)
            return len(trials)

    def _postpone(self, trial: Trial) -> None:
        """Gives up a trial whose run directory another process uses, until there is nothing else to claim.

        An earlier worker whose lease has expired is the usual cause. It closes the run once it notices that the trial
        is no longer assigned to it.
        """
        if trial.configuration not in self._in_use:
            self.table.say(f"trial {trial.id} has to wait: another process uses {trial.files.path}")
        self._in_use.pop(trial.configuration, None)
        self._in_use[trial.configuration] = None
        self.study.release(trial.configuration)

    def _fail(self, trials: Iterable[Trial], reason: str) -> None:
        for trial in trials:
            self.table.say(f"trial {trial.id} failed: {reason}")
            record_end(self.study, results.row(trial, "failed", Progress(), None, None), self.table, 0)


def _saved(trial: Trial) -> set[int]:
    """The steps of which the trial has an intact checkpoint."""
    return set(Checkpoints(trial.files.checkpoints, read_only=True).intact_steps())


def _start(trial: Trial, trials: Iterable[Trial], saved: Mapping[str, set[int]], corpus: Corpus) -> int:
    """The latest step before the last that all seeds of the trial's configuration have saved, or 0.

    They are trained together, because a configuration is ranked at a rung by the mean over its seeds.
    """
    common = set.intersection(*(saved[one.id] for one in trials if one.configuration == trial.configuration))
    return max((step for step in common if step < corpus.total_steps(trial.experiment)), default=0)


def _whole_configurations(trials: Sequence[Trial], max_trials: int) -> list[Trial]:
    """The first trials, at most `max_trials`. All seeds of a configuration stay together, if `max_trials` allows."""
    batch: list[Trial] = []
    for _, seeds in itertools.groupby(trials, key=lambda trial: trial.configuration):
        seeds = list(seeds)
        if batch and len(batch) + len(seeds) > max_trials:
            break
        batch += seeds[:max_trials]
    return batch
