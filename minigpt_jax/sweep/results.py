"""Writes results.jsonl and results.csv, which have a row for each configuration and seed."""

import csv
import io
import json
from typing import Any

import filelock

from minigpt_jax.config import Experiment
from minigpt_jax.storage.run_dir import write_atomic
from minigpt_jax.sweep import axes
from minigpt_jax.sweep.plan import Trial
from minigpt_jax.sweep.study import Study
from minigpt_jax.train import compute
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress


def row(
    trial: Trial, status: str, progress: Progress, sums: LossSums | None, experiment: Experiment | None
) -> dict[str, Any]:
    """The row of results of a trial.

    Args:
        status: complete, pruned, diverged or failed.
        sums: the sums of its last evaluation, or None if it has none or its loss became infinite or NaN.
        experiment: that of its run, whose vocabulary is known; None if it has not begun.
    """
    figures = (LossSums() if sums is None else sums).summary()
    return {
        "configuration": trial.configuration,
        "trial": trial.id,
        "seed": trial.seed,
        **{name: axes.plain(value) for name, value in trial.values.items()},
        "status": status,
        **{name: value if abs(value) < float("inf") else None for name, value in figures.items()},
        "step": progress.step,
        "parameters": None if experiment is None else compute.parameters(experiment),
        "training_tokens": progress.tokens,
        "training_flops": None if experiment is None else compute.training_flops(experiment, progress.step),
        "seconds": round(progress.seconds, 3),
        "run_dir": str(trial.files.path.relative_to(trial.folder)),
    }


def write(study: Study) -> None:
    """Rewrites both files with the rows of all workers. A lock keeps an older state from overwriting a newer one."""
    folder = study.plan.folder
    with filelock.FileLock(folder / ".results.lock"):
        rows = study.rows()
        write_atomic(folder / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_atomic(folder / "results.csv", _csv(rows))


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        names = dict.fromkeys(name for row in rows for name in row)  # rows of earlier versions have fewer columns
        writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
