"""What each choice of the best configuration gains: the validation loss with one change at a time, for several seeds.

    ./launch.sh experiments/ablate_best.py --data.archive simplebooks.zip --steps 640
    ./launch.sh experiments/ablate_best.py --data.archive simplebooks.zip --only best "no QK-norm" --seeds 0 1 2

Every variant trains on the same number of tokens and is evaluated as in the tutorial. Variants and seeds that differ
only in numbers are trained together by one program, as in a sweep. The batches are drawn from memory by NumPy, so no
TensorFlow is needed. The results are appended to ablation.jsonl when each group ends, and those that exist already are
not computed again. ablation.md is a table of all of them.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax import config, display
from minigpt_jax.cli import parser
from minigpt_jax.cli.train import load_experiment
from minigpt_jax.config import DataConfig, Experiment
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import Rows
from minigpt_jax.data.store import Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.files import make_folder
from minigpt_jax.sweep import axes
from minigpt_jax.train import program
from minigpt_jax.train.loop import CountedTrial, Training, fit
from minigpt_jax.trial import environment

VARIANTS: dict[str, dict[str, Any]] = {
    "best": {},
    "Muon's own rate 1e-2": {"optimizer.muon_learning_rate": 1e-2},
    "Muon's own rate 4e-2": {"optimizer.muon_learning_rate": 4e-2},
    "Adam's rate 8e-3": {"optimizer.learning_rate": 8e-3},
    "Adam's rate 3e-2": {"optimizer.learning_rate": 3e-2},
    "Muon": {"optimizer.name": "muon"},
    "AdamW at 3e-3": {"optimizer.name": "adamw", "optimizer.learning_rate": 3e-3},
    "weight decay 0.1": {"optimizer.weight_decay": 0.1},
    "cosine": {"optimizer.schedule": "cosine"},
    "constant rate": {"optimizer.schedule": "constant"},
    "b2 0.99": {"optimizer.b2": 0.99},
    "clipping at 1": {"optimizer.clip_norm": 1.0},
    "EMA of 0.99": {"optimizer.ema_decay": 0.99},
    "batch 64": {"train.batch_size": 64},
    "batch 16": {"train.batch_size": 16},
    "no annealing": {"data.anneal_fraction": 0.0},
    "annealing of 0.15": {"data.anneal_fraction": 0.15},
    "annealing of 0.5": {"data.anneal_fraction": 0.5},
    "the reference's rows": {"data.layout": "lines", "data.anneal_fraction": 0.0},
    "documents isolated": {"model.isolate_documents": True},
    "each block applied twice": {"model.repeats": 2},
    "3 layers of 256": {"model.num_layers": 3, "model.width": 256, "model.feed_forward": 1100},
    "4 layers of 240": {"model.num_layers": 4, "model.width": 240, "model.feed_forward": 812},
    "8 layers of 208": {"model.num_layers": 8, "model.width": 208, "model.feed_forward": 332},
    "8 layers": {"model.num_layers": 8, "model.feed_forward": 244},
    "no factorised embedding": {"model.embedding_width": None, "model.feed_forward": 320},
    "embedding width of 64": {"model.embedding_width": 64, "model.feed_forward": 604},
    "embedding width of 192": {"model.embedding_width": 192, "model.feed_forward": 348},
    "no convolution": {"model.convolution": 0},
    "no head gate": {"model.head_gate": False},
    "no pointer": {"model.pointer": 0, "model.feed_forward": 492},
    "pointer of 32": {"model.pointer": 32, "model.feed_forward": 484},
    "pointer of 128": {"model.pointer": 128, "model.feed_forward": 460},
    "untied": {"model.tied_embeddings": False, "model.feed_forward": 236},
    "no embedding norm": {"model.embedding_norm": False},
    "no zero init": {"model.zero_init": False},
    "no QK-norm": {"model.qk_norm": False},
    "learned positions": {"model.positions": "learned", "model.feed_forward": 464},
    "post-norm": {"model.norm_position": "post"},
    "LayerNorm": {"model.norm": "layernorm"},
    "SwiGLU": {"model.activation": "swiglu", "model.feed_forward": 316},
    "GELU": {"model.activation": "gelu"},
    "biases": {"model.use_bias": True, "model.feed_forward": 472},
    "soft-cap 15": {"model.logit_softcap": 15.0},
}
"""Changes to the best configuration that keep it within the reference's 3,255,938 parameters."""
TOGETHER = 16


@dataclass(frozen=True)
class Arguments:
    """Train variants of an experiment that differ in one choice each, and compare their validation loss."""

    data: DataConfig = field(default_factory=DataConfig)
    """Corpus, archive and files; the layout is the experiment's."""
    experiment: Path = Path("experiments/simplebooks_best.py")
    """What the variants are variants of."""
    steps: int = 640
    """Updates at the experiment's batch size; a variant with another makes as many as take the same tokens."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of weights and order; each variant is trained with all of them."""
    only: tuple[str, ...] = ()
    """Variants to train; all by default."""
    output: Path = Path("runs/ablation")
    """Folder of ablation.jsonl and ablation.md."""


def main(arguments: list[str]) -> int:
    """Trains what is missing, and writes the table; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "ablate_best.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    for name in chosen.only:
        if name not in VARIANTS:
            raise UserError(f"--only {name}: there is no such variant; take some of {', '.join(VARIANTS)}")
    best, asked = load_experiment(str(chosen.experiment)), chosen.data
    data = dataclasses.replace(best.data, corpus=asked.corpus, archive=asked.archive, files=asked.files)
    best = dataclasses.replace(best, data=data)
    results = chosen.output / "ablation.jsonl"
    for stacked in _stacks(best, chosen, _lines(results)):
        experiments = [experiment for _, experiment in stacked]
        prepared = environment.prepare(experiments[0]).prepared
        names = ", ".join(dict.fromkeys(name for name, _ in stacked))
        for (name, experiment), figures in zip(stacked, _train(experiments, prepared, names), strict=True):
            line = {"variant": name, "seed": experiment.seed, "steps": experiment.train.steps, **figures}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            display.console.print(f"{name}, seed {experiment.seed}: loss {line['loss']:.4f}", highlight=False)
    table = _table(_lines(results))
    (chosen.output / "ablation.md").write_text(table)
    display.console.print(table, markup=False)
    return 0


def _stacks(best: Experiment, chosen: Arguments, done: list[dict[str, Any]]) -> list[list[tuple[str, Experiment]]]:
    """What is yet to be trained, by name; those that share a program stand together."""
    there = {(line["variant"], line["seed"], line["steps"]) for line in done}
    stacks: dict[Any, list[tuple[str, Experiment]]] = {}
    for name in chosen.only or VARIANTS:
        experiment = axes.apply(best, VARIANTS[name])
        steps = chosen.steps * best.train.batch_size // experiment.train.batch_size
        experiment = axes.apply(experiment, {"train.steps": steps})
        config.validate(experiment)
        for seed in chosen.seeds:
            if (name, seed, steps) not in there:
                one = dataclasses.replace(experiment, seed=seed)
                stacks.setdefault(program.shared_part(one), []).append((name, one))
    return list(stacks.values())


def _train(experiments: list[Experiment], prepared: Prepared, title: str) -> list[dict[str, Any]]:
    """Trains a stack; returns each one's figures."""
    start = time.perf_counter()
    steps, seeds = experiments[0].train.steps, [e.seed for e in experiments]
    assert steps is not None
    stack = program.stack(experiments[0], dropout=False, trials=len(experiments))
    distinct = sorted(set(seeds))
    inputs = stack.stacked(program.stack_inputs(experiments, [distinct.index(seed) for seed in seeds], steps))
    seeded = [dataclasses.replace(experiments[0], seed=seed) for seed in distinct]
    streams = [prepared.training_batches(_batches, experiment, steps) for experiment in seeded]
    together = next(n for n in range(min(steps, TOGETHER), 0, -1) if steps % n == 0)
    display.console.print(f"training {title}", highlight=False)
    with display.TrainingBar(0, steps) as bar:
        trials = [CountedTrial(on_advance=bar.advanced), *(CountedTrial() for _ in experiments[1:])]
        training = Training(stack, inputs, stack.init(inputs), trials)
        diverging = lambda training, place: None  # noqa: E731 - its loss tells
        fit(training, streams, steps, log_every=steps, steps_per_execution=together, on_divergence=diverging)
    spent = time.perf_counter() - start
    totals = stack.evaluate(training.state.weights, prepared.splits["valid"], 64)[: len(experiments)]
    parameters = sum(leaf[0].size for leaf in jax.tree.leaves(stack.joined(training.state.params)))
    shared = {"parameters": parameters, "stacked": len(experiments), "seconds": spent}
    return [{**total.summary(), **shared} for total in totals]


def _batches(rows: Rows, batch_size: int, seed: int, *place: int) -> Iterator[Batch]:
    assert place == (0, 0, 1), "all of every batch, from the first one on"
    for epoch in range(1_000_000):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows.take(order[start : start + batch_size])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _table(lines: list[dict[str, Any]]) -> str:
    """The best first; the change is that of the mean over the seeds that both have."""
    losses: dict[str, dict[int, float]] = {}
    for line in lines:
        losses.setdefault(line["variant"], {})[line["seed"]] = line["loss"]
    parameters = {line["variant"]: line["parameters"] for line in lines}
    out = ["| variant | parameters | loss, each seed | mean | change |", "|---|---:|---:|---:|---:|"]
    for name, own in sorted(losses.items(), key=lambda item: statistics.mean(item[1].values())):
        shared = [own[seed] - base for seed, base in losses.get("best", {}).items() if seed in own]
        change = f"{statistics.mean(shared):+.4f}" if shared else ""
        each = " ".join(f"{own[seed]:.4f}" for seed in sorted(own))
        out.append(f"| {name} | {parameters[name]:,} | {each} | {statistics.mean(own.values()):.4f} | {change} |")
    return "\n".join(out) + "\n"
