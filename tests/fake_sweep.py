"""Run directories and folders of sweeps as training would write them, with figures from formulas, for reports."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tiny_experiment

from minigpt_jax.config import Experiment
from minigpt_jax.storage.run_dir import RunDir, write_description

AXES = [
    {"field": "optimizer.learning_rate", "low": 1e-4, "high": 1e-1, "log": True},
    {"field": "model.num_layers", "values": [1, 2, 4]},
    {"field": "model.activation", "values": ["relu", "gelu", "swiglu"]},
]
GRID = [AXES[1], {"field": "optimizer.b2", "values": [0.9, 0.99, 0.999]}]
EXPERIMENT = tiny_experiment.changed("train", steps=60)
SEEDS = (0, 1, 2)
DIVERGES_ABOVE = 3e-2


def losses(final: float, points: int) -> list[float]:
    """A curve that falls from 6 to `final`."""
    return [final + (6.0 - final) * math.exp(-5 * i / points) for i in range(1, points)] + [final]


def write_run(
    path: Path,
    experiment: Experiment = EXPERIMENT,
    final: float = 4.0,
    points: int = 6,
    samples: str = "once upon a time",
    diverges: bool = False,
    tokenizer: str = "t0",
    corpus: str = "c0",
    bytes_per_token: float = 2 / math.log(2),
) -> RunDir:
    """A run directory without checkpoints: an evaluation and two training lines every 10 steps."""
    files = RunDir(path)
    write_description(files, experiment, {"corpus": corpus, "tokenizer": tokenizer}, {})
    files.samples.mkdir(exist_ok=True)
    lines = []
    for i, loss in enumerate(losses(final, points), 1):
        step = 10 * i
        for split, at, value in (("train", step - 5, loss + 0.1), ("train", step, loss + 0.05), ("valid", step, loss)):
            gone = diverges and i == points
            lines.append(
                {
                    "step": at,
                    "split": split,
                    "loss": None if gone else value,
                    "perplexity": None if gone else math.exp(value),
                    "bits_per_byte": None if gone else value / math.log(2) / bytes_per_token,
                    "tokens": 512 * at,
                    "seconds": 0.25 * at,
                    **({"learning_rate": 1e-3 * at, "grad_norm": 1 / at} if split == "train" else {}),
                }
            )
        (files.samples / f"step-{step:08}.txt").write_text(f"{samples} ({step})\n\nthe end\n")
    files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def write_sweep(
    folder: Path, axes: list[dict[str, Any]] = AXES, number: int = 16, file: str = "experiments/quickstart.py"
) -> list[dict[str, Any]]:
    """A sweep's folder with this many configurations of three seeds each; returns the rows.

    The learning rate matters most, and above 3e-2 it diverges; one configuration was pruned, of another a seed failed.
    """
    random = np.random.default_rng(0)
    grid = itertools.cycle(itertools.product(*[axis.get("values", [None]) for axis in axes]))
    rows = []
    for configuration, point in zip(range(number), grid, strict=False):
        values = {axis["field"]: value for axis, value in zip(axes, point, strict=True)}
        for axis in axes:
            if "low" in axis:
                values[axis["field"]] = float(np.exp(random.uniform(np.log(axis["low"]), np.log(axis["high"]))))
        for seed in SEEDS:
            rate = values.get("optimizer.learning_rate", 3e-3)
            final = 3.0 + 0.4 * abs(math.log10(rate / 3e-3)) ** 2 - 0.1 * values["model.num_layers"]
            final += 0.05 * (values.get("model.activation") == "relu") + float(random.normal(0, 0.02))
            final += abs(values.get("optimizer.b2", 0.99) - 0.99)
            status = "diverged" if rate > DIVERGES_ABOVE else "complete"
            if (configuration, seed) == (3, 2):
                status = "failed"
            if configuration == 5 and seed > 0:
                status = "pruned"
            trial, points = f"{configuration:04}-seed{seed}", 6 if status in ("complete", "diverged") else 3
            if status == "pruned":
                final += 1
            row = {"configuration": configuration, "trial": trial, "seed": seed, **values, "status": status}
            known = status in ("complete", "pruned")
            row |= {
                "loss": final if known else None,
                "perplexity": math.exp(final) if known else None,
                "bits_per_byte": final / 2 if known else None,
                "step": 10 * points,
                "parameters": 1000 * values["model.num_layers"],
                "training_tokens": 5120 * points,
                "training_flops": 6e3 * values["model.num_layers"] * 5120 * points,
                "seconds": 2.5 * points,
                "run_dir": f"trials/{trial}",
            }
            rows.append(row)
            if status != "failed":
                write_run(
                    folder / "trials" / trial, final=final, points=points, diverges=status == "diverged", samples="<i>"
                )
    about = {
        "name": folder.name,
        "file": file,
        "axes": axes,
        "search": "random",
        "trials": number,
        "flags": ["--train.steps", "60"],
        "command": f"./launch.sh sweep {file} optimizer.learning_rate=1e-4..1e-1:log seed=0,1,2 -- --train.steps 60",
    }
    (folder / "sweep.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
