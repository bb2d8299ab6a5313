"""The results of a sweep: reads its files, averages over seeds, and ranks the configurations.

A row of results.jsonl is one configuration with one seed. Seeds are replicates: the objective of a configuration is the
mean loss of its complete rows (or their mean bits per byte, if an axis changes the tokens), and its spread is their
sample standard deviation.
"""

import itertools
import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minigpt_jax.config import Experiment, flag_name, flatten
from minigpt_jax.errors import UserError
from minigpt_jax.report import objective
from minigpt_jax.report.objective import Figure
from minigpt_jax.report.runs import is_finite
from minigpt_jax.storage.run_dir import check_contents

STATUSES = ("complete", "pruned", "diverged", "failed")
Row = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A field that the sweep varies, over a list of values or over a range.

    Attributes:
        field: its dotted name.
        values: the values of a list; empty for a range.
        low, high, log: the ends of a range, and whether it is searched on a log scale.
    """

    field: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    @property
    def numeric(self) -> bool:
        ends = self.values or (self.low, self.high)
        return all(is_finite(value) and not isinstance(value, bool) for value in ends)

    @property
    def log_scale(self) -> bool:
        """Whether plots of this axis use a log scale: for a log range, or for values with growing distances.

        1e-3, 3e-3, 1e-2 and 1, 2, 4, 8 are plotted on a log scale; 0, 0.1, 0.2 and 1, 2, 3 are not.
        """
        if not self.values:
            return self.log
        if not self.numeric or len(self.values) < 3 or min(self.values) <= 0:
            return False
        ordered = sorted(self.values)
        ratios = [b / a for a, b in itertools.pairwise(ordered)]
        return min(ratios) >= 1.8


@dataclass(frozen=True)
class Configuration:
    """A configuration and the results of its seeds.

    Attributes:
        number: its number in the sweep.
        values: the values of the axes, by dotted name.
        rows: the rows of the seeds that have ended so far.
        figure: the figure that ranks configurations.
    """

    number: int
    values: dict[str, Any]
    rows: tuple[Row, ...]
    figure: Figure = "loss"

    @cached_property
    def complete(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.get("status") == "complete" and is_finite(row.get(self.figure)))

    @property
    def scores(self) -> list[float]:
        """The figure of each complete seed: its loss in nats per token, or its bits per byte."""
        return [row[self.figure] for row in self.complete]

    @property
    def mean(self) -> float | None:
        """The mean score of the complete seeds, or None if there are none."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of the scores of the complete seeds, or None if there are fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def loss(self) -> float | None:
        return self._mean_of("loss")

    @property
    def perplexity(self) -> float | None:
        """exp(mean loss). As all seeds are validated on the same labels, this is the perplexity over all of them."""
        return None if self.loss is None else math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        return self._mean_of("bits_per_byte")

    def _mean_of(self, figure: Figure) -> float | None:
        found = [row[figure] for row in self.complete if is_finite(row.get(figure))]
        return statistics.fmean(found) if found else None

    def count(self, status: str) -> int:
        return sum(row.get("status") == status for row in self.rows)


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep's folder: sweep.json, and the rows of results.jsonl so far."""

    folder: Path
    name: str
    file: str
    axes: tuple[Axis, ...]
    flags: tuple[str, ...]
    search: str
    command: str
    rows: tuple[Row, ...]
    caveats: tuple[str, ...] = ()

    @property
    def figure(self) -> Figure:
        """The figure that ranks the configurations."""
        return objective.figure_of(axis.field for axis in self.axes)

    @property
    def objective(self) -> str:
        return f"valid {objective.NAMES[self.figure]}"

    @cached_property
    def configurations(self) -> list[Configuration]:
        """The configurations, best first."""
        return rank(configurations(self.rows, [axis.field for axis in self.axes], self.figure))

    def label(self, axis: Axis) -> str:
        """The name of the axis's field without its section, unless another axis has the same one."""
        leaf = axis.field.rpartition(".")[2]
        alike = sum(other.field.rpartition(".")[2] == leaf for other in self.axes)
        return leaf if alike == 1 else axis.field

    @property
    def best(self) -> Configuration | None:
        first = self.configurations[0] if self.configurations else None
        return first if first is not None and first.mean is not None else None

    @property
    def counts(self) -> Counter[str]:
        """The number of rows of each status."""
        return Counter(str(row.get("status")) for row in self.rows)


def is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file()


def read(folder: Path) -> Sweep:
    """Reads the folder of a sweep, which may still be running.

    Raises:
        UserError: the folder does not hold a sweep, or is damaged.
    """
    path = folder / "sweep.json"
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of a sweep: it has no sweep.json; give one under runs/sweeps")
    try:
        check_contents(folder)
        about = json.loads(path.read_text(encoding="utf-8"))
        axes = tuple(_axis(axis) for axis in about["axes"] if axis["field"] != "seed")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the sweep's command again"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return Sweep(
        folder=folder,
        name=str(about.get("name") or folder.resolve().name),
        file=str(about.get("file", "")),
        axes=axes,
        flags=_texts(about.get("flags")),
        search=str(about.get("search", "")),
        command=str(about.get("command", "")),
        rows=tuple(row for row in read_rows(folder / "results.jsonl") if _fits(row, axes)),
        caveats=_texts(about.get("caveats")),
    )


def _axis(about: dict[str, Any]) -> Axis:
    """Reads an axis of sweep.json. Raises ValueError, KeyError or TypeError if it is not valid."""
    axis = Axis(
        about["field"], tuple(about.get("values") or ()), about.get("low"), about.get("high"), bool(about.get("log"))
    )
    plain = all(value is None or isinstance(value, bool | int | float | str) for value in axis.values)
    ends = is_finite(axis.low, axis.high) and (not axis.log or (axis.low or 0) > 0)
    if not isinstance(axis.field, str) or not plain or not (axis.values or ends):
        raise ValueError(f"not an axis: {about}")
    return axis


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(map(str, values)) if isinstance(values, list) else ()


def _fits(row: Row, axes: Sequence[Axis]) -> bool:
    """Whether a row has a valid value for each axis. A damaged row may not have one."""
    return all(row.get(axis.field) in axis.values if axis.values else is_finite(row.get(axis.field)) for axis in axes)


def read_rows(path: Path) -> list[Row]:
    """The rows of results.jsonl. Incomplete lines are skipped. If a trial has two rows, the later one is used."""
    rows: dict[Any, Row] = {}
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; run the sweep's command again") from error
    for text in texts:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("configuration"), int):
            rows[str(row.get("trial", (row["configuration"], row.get("seed"))))] = row
    return list(rows.values())


def configurations(rows: Sequence[Row], fields: Sequence[str], figure: Figure = "loss") -> list[Configuration]:
    """Groups the rows by configuration, in the order of the configurations' numbers."""
    gathered: dict[int, list[Row]] = {}
    for row in rows:
        gathered.setdefault(row["configuration"], []).append(row)
    return [
        Configuration(number, {field: of_one[0].get(field) for field in fields}, tuple(of_one), figure)
        for number, of_one in sorted(gathered.items())
    ]


def rank(found: Sequence[Configuration]) -> list[Configuration]:
    """Sorts by mean score, best first. Configurations with a pruned, diverged or failed seed come after the others.

    For those the mean over the remaining seeds would be too good.
    """

    def key(one: Configuration) -> tuple[bool, bool, float, int]:
        incomplete = any(one.count(status) for status in STATUSES[1:])
        return one.mean is None, incomplete, math.inf if one.mean is None else one.mean, one.number

    return sorted(found, key=key)


def command(sweep: Sweep, best: Configuration) -> str:
    """The shell command that trains this configuration with the first of its seeds."""
    words = ["./launch.sh", sweep.file, *sweep.flags]
    for field, value in best.values.items():
        words += flag_words(field, value)
    seed = best.rows[0].get("seed")
    if seed is not None:
        words += ["--seed", str(seed)]
    return shlex.join([*words, "--run-dir", f"runs/{sweep.name}-best"])


def flag_words(field: str, value: Any) -> list[str]:
    """The words of the command line that set a field. A tuple may also be given as a string of shell words."""
    flag = flag_name(field)
    if isinstance(value, str) and isinstance(flatten(Experiment(name="")).get(field), list | tuple):
        try:
            value = shlex.split(value)
        except ValueError:  # the sweep was made by a version that did not quote items
            value = value.split()
    if isinstance(value, bool):
        section, _, leaf = flag.rpartition(".")
        return ["--" + (f"{section}." if section else "") + ("" if value else "no-") + leaf]
    words = list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]
    if words and words[0].startswith("-"):  # it looks like a flag, so it is attached to the field's flag by "="
        return [f"--{flag}={words[0]}", *words[1:]]
    return [f"--{flag}", *words]
