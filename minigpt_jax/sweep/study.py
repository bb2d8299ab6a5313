"""The study that a sweep's workers share: the configurations, the worker that trains each, and their results.

The study is kept in an Optuna storage, where each configuration is one Optuna trial. Optuna's heartbeat does not work
with its ask-and-tell interface, so the study keeps leases instead, and a running configuration names its worker. Once a
worker's lease expires, its configurations are given to other workers.
Finishing a trial is atomic in every storage, so a configuration cannot be finished twice, even if a slow worker was
wrongly taken for lost.
"""

import contextlib
import math
import secrets
import socket
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from minigpt_jax import config
from minigpt_jax.errors import UserError, without_password
from minigpt_jax.sweep import axes as axes_
from minigpt_jax.sweep.axes import Axis
from minigpt_jax.sweep.leases import LEASE_SECONDS, Leases
from minigpt_jax.sweep.plan import Plan
from minigpt_jax.sweep.storage import open_storage

_SWEEP = "sweep"  # the attribute that holds the plan's identity, once the sweep has begun
_DRAWS = 64  # of one new configuration, until it differs from all earlier ones


@dataclass(frozen=True)
class Claim:
    """A configuration that this worker has claimed and must train."""

    configuration: int
    values: dict[str, Any]
    done: dict[int, dict[str, Any]]
    """Rows of results by seed, for the seeds that an earlier worker finished."""


class Sampler(optuna.samplers.BaseSampler):
    """Draws a configuration as a function of its number, and with TPE of the results so far, whichever worker asks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._is_grid = plan.search == "grid"

    def _make(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._plan.search == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if self._is_grid else self._make(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {} if self._is_grid else self._make(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._is_grid:
            index = sum(not _is_void(other) for other in study.get_trials(deepcopy=False)[: trial.number])
            return _choice(axes_.point(self._plan.axes, index)[param_name])  # beyond the last, from the first again
        seed = zlib.crc32(f"{trial.number} {param_name}".encode())
        return self._make(seed).sample_independent(study, trial, param_name, param_distribution)


class Study:
    """A worker's access to the study. Within a `with` block it holds a lease.

    Args:
        storage: the address of a database in SQLAlchemy's form, or None for a journal in the sweep's folder.
        lease: the seconds after which a worker that has not renewed its lease loses its configurations.

    Raises:
        UserError: the storage cannot be used, or holds another sweep of this name.
    """

    def __init__(self, plan: Plan, storage: str | None = None, lease: float = LEASE_SECONDS) -> None:
        self.plan = plan
        self.worker = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._space = {axis.field: _distribution(axis) for axis in plan.axes}
        self._values = {axis.field: {_choice(value): value for value in axis.values} for axis in plan.axes}
        self._orphans: dict[int, float] = {}
        self._full = False
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        self._storage, self._study = self._open(storage)
        self._leases = Leases(self._study, self.worker, lease)

    def __enter__(self) -> "Study":
        if _SWEEP not in self._study.user_attrs:
            self._study.set_user_attr(_SWEEP, self.plan.identity())
        self._check_same(self._study)
        self._leases.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._leases.__exit__()

    def claim(self, max_configurations: int, last: Collection[int] = ()) -> list[Claim]:
        """Claims configurations to train, at most `max_configurations`: first those of lost workers, then new ones.

        Args:
            last: configurations that are claimed only if there are too few others, in this order.
        """
        claims: list[Claim] = []

        def claim_begun(configurations: Collection[int] | None = None) -> None:
            begun = {frozen.number: frozen for frozen in self._trials()}
            chosen = [c for c in begun if c not in last] if configurations is None else configurations
            for frozen in (begun[c] for c in chosen if c in begun):
                if len(claims) < max_configurations and frozen.state == TrialState.RUNNING and self._is_free(frozen):
                    try:
                        self._assign(frozen)
                    except optuna.exceptions.UpdateFinishedTrialError:  # another worker has just finished it
                        continue
                    if self.holds(frozen.number):
                        claims.append(self._claimed(optuna.trial.Trial(self._study, frozen._trial_id)))

        claim_begun()
        while len(claims) < max_configurations and (claim := self._new()) is not None:
            claims.append(claim)
        claim_begun(last)
        return claims

    def holds(self, configuration: int) -> bool:
        """Whether the configuration is unfinished and still assigned to this worker."""
        frozen = self._study.get_trials(deepcopy=False)[configuration]
        return frozen.state == TrialState.RUNNING and frozen.user_attrs.get("worker") == self.worker

    def release(self, configuration: int) -> None:
        """Gives the configuration up, so that another worker can claim it immediately."""
        if self.holds(configuration):
            self._set(configuration, "worker", "")

    def report(self, configuration: int, step: int, score: float) -> None:
        """Stores the score by which the configuration is ranked after `step` steps."""
        self._storage.set_trial_intermediate_value(self._id(configuration), step, score)

    def scores_at(self, step: int) -> list[float]:
        """The scores of all configurations that were reported at this step, including pruned ones."""
        return [t.intermediate_values[step] for t in self._trials() if step in t.intermediate_values]

    def record(self, configuration: int, seed: int, row: dict[str, Any]) -> bool:
        """Stores the row of results of one seed. Returns False if the configuration is finished or no longer ours."""
        if not self.holds(configuration):
            return False
        try:
            self._set(configuration, f"row {seed}", row)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def finish(self, configuration: int) -> bool:
        """Reports a configuration whose seeds all have rows to the search. Returns False if it is already finished."""
        rows = list(_rows(self._study.get_trials(deepcopy=False)[configuration]).values())
        statuses = {row["status"] for row in rows}
        scores = [row[self.plan.figure] for row in rows]
        try:
            if statuses == {"complete"}:
                mean = math.fsum(scores) / len(scores)
                spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / max(len(scores) - 1, 1))
                self._set(configuration, "spread", spread)
                self._study.tell(configuration, mean)
            elif "failed" in statuses:
                self._study.tell(configuration, state=TrialState.FAIL)
            else:
                if "diverged" in statuses:  # the worst possible score, so that the search avoids this region
                    self.report(configuration, max(row["step"] for row in rows) + 1, math.inf)
                self._study.tell(configuration, state=TrialState.PRUNED)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False
        return True

    def rows(self) -> list[dict[str, Any]]:
        """The rows of results so far, ordered by configuration and seed."""
        rows = []
        for frozen in self._trials():
            found = _rows(frozen)
            rows += [found[seed] for seed in self.plan.seeds if seed in found]
        return rows

    def unfinished(self) -> int:
        """The number of configurations that no worker has finished yet."""
        trials = self._trials()
        finished = sum(t.state.is_finished() for t in trials)
        return len(trials) - finished if self._full else max(self.plan.trials, len(trials)) - finished

    def workers(self) -> int:
        """The number of workers whose lease has not expired, including this one."""
        return self._leases.active()

    def _open(self, storage: str | None) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
        folder, name = self.plan.folder, self.plan.name
        try:
            opened = open_storage(folder, storage)
            study = optuna.create_study(
                storage=opened, sampler=Sampler(self.plan), study_name=name, load_if_exists=True
            )
        except OSError:
            raise
        except Exception as error:  # SQLAlchemy, the database's driver and Optuna raise different types
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            if storage is None:
                raise UserError(
                    f"{folder / 'study.journal'} is damaged ({reason}); restore it, or start a new sweep with "
                    "another --name"
                ) from error
            hidden = without_password(storage)
            missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
            if isinstance(missing, ModuleNotFoundError) and "psycopg" in str(missing.name):
                raise UserError(
                    f"--storage {hidden}: PostgreSQL needs the extra postgres: pip install 'minigpt_jax[postgres]'; "
                    "the address is postgresql+psycopg://user@host/database"
                ) from None
            reason = without_password(reason.replace(storage, hidden))
            raise UserError(
                f"--storage {hidden}: cannot be used ({reason}); give an address such as "
                "postgresql+psycopg://user@host/database, or none for a journal in the sweep's folder"
            ) from None  # the original error may contain the password
        self._check_same(study)
        return opened, study

    def _check_same(self, study: optuna.Study) -> None:
        """Raises UserError if another sweep of this name has begun."""
        identity, known = self.plan.identity(), study.user_attrs.get(_SWEEP)
        if known is None:
            return
        with contextlib.suppress(UserError):  # fields that were added after the sweep began have their defaults
            known = {**known, "experiment": config.to_json(config.from_json(known["experiment"]))}
        if known != identity:
            raise UserError(
                f"--name {self.plan.name}: the sweep of this name {_differences(known, identity)}; choose another "
                "--name"
            )

    def _trials(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if not _is_void(t)]

    def _id(self, configuration: int) -> int:
        return self._study.get_trials(deepcopy=False)[configuration]._trial_id

    def _set(self, configuration: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(configuration), name, value)

    def _new(self) -> Claim | None:
        for _ in range(_DRAWS):
            if len(self._trials()) >= self.plan.trials:
                return None
            trial = self._study.ask()
            self._assign(trial)
            claim = self._claimed(trial)
            earlier = [t for t in self._trials() if t.number < trial.number]
            if len(earlier) >= self.plan.trials:  # other workers asked for the last ones at the same time
                self._void(trial)
                return None
            if all(t.params != trial.params for t in earlier):
                return claim
            self._void(trial)
        self._full = True  # presumably all possible configurations have been drawn
        return None

    def _claimed(self, trial: optuna.trial.Trial) -> Claim:
        values = {}
        for name, distribution in self._space.items():
            # A lost worker may have drawn only some of the values. Optuna returns those, and draws the others now.
            if isinstance(distribution, CategoricalDistribution):
                values[name] = self._values[name][trial.suggest_categorical(name, distribution.choices)]
            elif isinstance(distribution, IntDistribution):
                values[name] = trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
            elif isinstance(distribution, FloatDistribution):
                values[name] = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        return Claim(trial.number, values, _rows(self._study.get_trials(deepcopy=False)[trial.number]))

    def _void(self, trial: optuna.trial.Trial) -> None:
        trial.set_user_attr("void", True)
        self._study.tell(trial, state=TrialState.FAIL)

    def _assign(self, trial: optuna.trial.Trial | FrozenTrial) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, "worker", self.worker)

    def _is_free(self, frozen: FrozenTrial) -> bool:
        worker = frozen.user_attrs.get("worker")
        if worker is None:  # created, but not assigned yet; perhaps its worker was lost in between
            return time.monotonic() - self._orphans.setdefault(frozen.number, time.monotonic()) > self._leases.seconds
        return worker != self.worker and self._leases.has_expired(worker)


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What the sweep of this name has that differs from ours, in words."""
    with contextlib.suppress(UserError, KeyError):
        their_fields, our_fields = (config.flatten(config.from_json(one["experiment"])) for one in (theirs, ours))
        if fields := [name for name, value in our_fields.items() if their_fields[name] != value]:
            return "has " + " and ".join(
                f"--{config.flag_name(name)} {their_fields[name]} instead of {our_fields[name]}" for name in fields
            )
    return "has another " + " and ".join(part for part in {**ours, **theirs} if theirs.get(part) != ours.get(part))


def _distribution(axis: Axis) -> BaseDistribution:
    if not axis.is_range:
        return CategoricalDistribution([_choice(value) for value in axis.values])
    make: Callable[..., BaseDistribution] = IntDistribution if isinstance(axis.low, int) else FloatDistribution
    return make(axis.low, axis.high, log=axis.log)


def _choice(value: Any) -> Any:
    """The form in which the storage keeps a value."""
    return axes_.plain(value)


def _rows(frozen: FrozenTrial) -> dict[int, dict[str, Any]]:
    return {int(name[4:]): row for name, row in frozen.user_attrs.items() if name.startswith("row ")}


def _is_void(frozen: FrozenTrial) -> bool:
    """Whether the configuration was discarded, as a duplicate of an earlier one or beyond the planned number."""
    return "void" in frozen.user_attrs


def survivors(scores: dict[int, float], all_scores: Sequence[float]) -> set[int]:
    """The configurations that continue under successive halving (Jamieson and Talwalkar 2016).

    Args:
        scores: the score of each configuration in question; lower is better.
        all_scores: the scores of all configurations that have reached the rung, including these. Those in the better
            half continue.
    """
    passing = sorted(all_scores)[: -(-len(all_scores) // 2)]
    return {configuration for configuration, score in scores.items() if score <= passing[-1]}
