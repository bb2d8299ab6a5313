"""Reads run directories for reports, also while the run is training, and computes the figures that summarise them."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_jax import config, display
from minigpt_jax.config import Experiment
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.report.objective import Figure
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.train import compute


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Attributes:
        name: the name of the folder, with as many parent folders as distinguish it from the other runs.
        lines: the lines of metrics.jsonl for each split, in the order of their steps.
        fingerprints: those of the corpus and the tokenizer.
    """

    name: str
    files: RunDir
    experiment: Experiment
    lines: dict[str, list[dict[str, Any]]]
    fingerprints: dict[str, str]

    @property
    def last(self) -> dict[str, Any] | None:
        """The latest line of any split."""
        lines = [line for split in ("train", "valid") for line in self.lines.get(split, [])]
        return max(lines, key=lambda line: line["step"], default=None)

    @property
    def final(self) -> dict[str, Any] | None:
        """The line of the latest validation."""
        return self.lines["valid"][-1] if self.lines.get("valid") else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the validation with the lowest loss."""
        finite = [line for line in self.lines.get("valid", []) if is_finite(line.get("loss"))]
        return min(finite, key=lambda line: line["loss"], default=None)

    @property
    def parameters(self) -> int | None:
        """The number of parameters, or None if this version cannot build the model for any reason."""
        try:
            # The type does not matter here, and "auto" would open the accelerator, which may be busy training.
            float32 = dataclasses.replace(self.experiment.model, dtype="float32")
            return compute.parameters(dataclasses.replace(self.experiment, model=float32))
        except Exception:
            return None

    def curve(self, split: str, x: str = "step", y: str = "loss") -> tuple[list[float], list[float]]:
        """Two columns of metrics.jsonl. Lines in which one of them is missing or not finite are skipped."""
        points = [(line[x], line[y]) for line in self.lines.get(split, []) if is_finite(line.get(x), line.get(y))]
        return [point[0] for point in points], [point[1] for point in points]

    @property
    def floor_bits_per_byte(self) -> float | None:
        """The entropy of the validation text, or None if it is unknown or its file cannot be read."""
        try:
            return Rows.load(self.files.rows("valid")).floor_bits_per_byte
        except UserError:  # the file is missing or damaged; the rest of the page does not need it
            return None

    def floor(self, figure: Figure) -> float | None:
        """The entropy of the validation text in the unit of `figure`: nats per token, or bits per byte."""
        floor, best = self.floor_bits_per_byte, self.best or {}
        if floor is None or figure == "bits_per_byte":
            return floor
        if not is_finite(best.get("bits_per_byte")) or not best["bits_per_byte"]:
            return None
        return floor * best["loss"] / best["bits_per_byte"]  # the text's ratio of bytes to tokens is constant

    def samples(self) -> list[tuple[int, str]]:
        """Pairs of a step and the texts sampled at that step."""
        found = []
        for path in sorted(self.files.samples.glob("step-*.txt")):
            match = re.fullmatch(r"step-(\d{1,18})\.txt", path.name)
            if match and (text := _text(path)) is not None:
                found.append((int(match[1]), text.strip("\n")))
        return found

    def comparison(self) -> dict[str, Any] | None:
        """The record that `sample --compare` saved: prompt, seed, step, and a row for each sampler."""
        path = self.files.samples / "compare.json"
        text = _text(path) if path.exists() else None
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {"rows": []}
        about = value if isinstance(value, dict) else {"rows": value}
        rows = about.get("rows")
        return about | {"rows": [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []}


def is_finite(*values: Any) -> bool:
    """Whether all values are numbers that a float can represent."""
    return all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in values)


def _text(path: Path) -> str | None:
    """The text of a file. If it cannot be read, warns and returns None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        display.warn(f"left out of the report: {error}")
        return None


def read(path: Path, name: str | None = None) -> Run:
    """Reads a run directory.

    Raises:
        UserError: the folder is not a run directory, is damaged, or links to files outside of it.
    """
    files = RunDir(path)
    try:
        experiment = files.experiment()
        metrics = read_metrics(files)
        fingerprints = files.description().get("fingerprints")
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}; restore it") from error
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in metrics:
        if isinstance(line.get("split"), str) and is_finite(line["step"]):
            lines.setdefault(line["split"], []).append(line)
    for of_split in lines.values():
        of_split.sort(key=lambda line: line["step"])
    known = {str(key): str(value) for key, value in fingerprints.items()} if isinstance(fingerprints, dict) else {}
    return Run(name or path.resolve().name, files, experiment, lines, known)


def read_all(paths: Sequence[Path]) -> list[Run]:
    """Reads run directories, each of them once, and gives them distinct names.

    Raises:
        UserError: one of them is not a run directory, or is damaged.
    """
    unique = list({path.resolve(): path for path in paths}.values())
    return [read(path, name) for path, name in zip(unique, names(unique), strict=True)]


def names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path: the fewest with which all names are distinct."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        ends = [os.sep.join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [str(path) for path in paths]


def differing_fields(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The fields in which the configurations of the runs differ, by dotted name, with the value of each run.

    For a single run these are the fields in which it differs from the defaults. The name of the experiment is excluded.
    """
    flat = [config.flatten(run.experiment) for run in runs]
    if len(runs) == 1:
        flat.append(config.flatten(Experiment(name="")))
    fields = {name: [values.get(name) for values in flat] for name in flat[0] if name not in ("name",)}
    return {name: values[: len(runs)] for name, values in fields.items() if any(value != values[0] for value in values)}


def differing_fingerprints(runs: Sequence[Run]) -> list[str]:
    """Names which of the corpus and the tokenizer differ among the runs."""
    known = sorted({name for run in runs for name in run.fingerprints})
    return [name for name in known if len({run.fingerprints.get(name) for run in runs}) > 1]
