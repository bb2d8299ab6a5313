"""Trials per hour: stacked in one program against one after another, for a small model and the reference.

./launch.sh experiments/benchmark_sweep.py [--models small reference] [--stacks 1 4 8 16 32] [--steps 3]

Both ways make the same updates on the same batches, each compiled beforehand, and they take turns, so that what else
the machine does falls on both. An hour's trials are of `--trial-steps` updates. One after another is the program of a
run: one trial on all of the device, its metrics fetched a step late.

Measured on a machine with two CPU cores that others were using too (a stack's trials run side by side on two devices):
stacked makes 1.0 to 1.2 times as many trials of the small model at 4 to 32 trials, and of the reference 1.0 to 1.3
times as many at 4, 1.19, 1.13 and 1.11 times at 8, 16 and 32 (`--steps 1 --rounds 2`); a stack of one is a run. `vmap`
in place of `lax.map` made 0.5 to 0.75 times as many of small models as one after another. A run on an accelerator is
still to be made.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_jax.cli import parser
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig, TrainConfig
from minigpt_jax.files import make_folder


@dataclass(frozen=True)
class Arguments:
    """Measures trials an hour, stacked and one after another."""

    models: tuple[str, ...] = ("small", "reference")
    """small (width 64) and reference (the tutorial's)."""
    stacks: tuple[int, ...] = (1, 4, 8, 16, 32)
    """Trials at a time."""
    steps: int = 3
    """Updates of each trial in a round."""
    rounds: int = 3
    """Rounds that the two ways take turns in; the median counts."""
    trial_steps: int = 500
    """Updates that make a trial."""
    output: Path = Path("runs/benchmarks")
    """Where sweep.md and sweep.json go."""


MODELS = {
    "small": Experiment(
        name="small",
        data=DataConfig(sequence_length=64),
        tokenizer=TokenizerConfig(vocabulary_size=1000),
        model=ModelConfig(num_layers=2, width=64, num_heads=4, feed_forward=128),
        train=TrainConfig(batch_size=16),
    ),
    "reference": Experiment(name="reference"),
}


def ways(experiment: Experiment, trials: int, steps: int) -> dict[str, Callable[[], None]]:
    """What makes `steps` updates of each of so many trials, in the two ways, compiled."""
    import functools

    import jax
    import numpy as np

    from minigpt_jax import model, rng
    from minigpt_jax.data.batch import Batch
    from minigpt_jax.train import optim, program
    from minigpt_jax.train.step import StepSpec, init_state, train_step

    size, length = experiment.train.batch_size, experiment.data.sequence_length
    rows = np.random.default_rng(0).integers(3, experiment.tokenizer.vocabulary_size, (size, length + 1))
    batch = Batch(rows.astype(np.uint16), np.full(size, 300, np.int32), np.full(size, length + 1, np.int32))
    rates = np.geomspace(1e-4, 1e-2, trials)
    experiments = [
        dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, learning_rate=float(rate)))
        for rate in rates
    ]

    stack = program.stack(experiment, dropout=False, trials=trials)
    inputs = stack.stacked(program.stack_inputs(experiments, [0] * trials, steps))
    batches = Batch(*(x[None, None] for x in batch))
    held = {"state": stack.init(inputs)}

    def stacked() -> None:
        for _ in range(steps):
            held["state"], out = stack.steps(held["state"], inputs, batches, 1)
        jax.block_until_ready(out)

    trainer = StepSpec(model.build(experiment), experiment.optimizer, True)
    step = jax.jit(functools.partial(train_step, trainer), donate_argnums=0)
    init = jax.jit(functools.partial(init_state, trainer))
    hypers = [optim.hyperparameters(e.optimizer, steps) for e in experiments]
    key = rng.stream(0, "init")
    single: dict[str, Any] = {"state": init(hypers[0], key)}

    def one_after_another() -> None:
        # The weights do not matter to the time, so one state serves all trials: no more memory than one trial has.
        for hyper in hypers:
            for _ in range(steps):
                single["state"], out = step(single["state"], batch, hyper, key)
            jax.block_until_ready(out)

    stacked()
    one_after_another()
    return {"one after another": one_after_another, "stacked": stacked}


def main(arguments: list[str]) -> int:
    """Measures, prints and writes; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "benchmark_sweep.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    import jax

    from minigpt_jax.benchmark import rounds
    from minigpt_jax.parallel import devices

    devices.use_all_cores()  # as the sweep command does
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    figures: list[dict[str, Any]] = []
    lines = [f"Trials of {chosen.trial_steps} steps an hour, {device}", ""]
    lines += ["| model | trials | one after another | stacked | times as many |", "|---|---|---|---|---|"]
    print("\n".join(lines))
    for name in chosen.models:
        for trials in chosen.stacks:
            both = ways(MODELS[name], trials, chosen.steps)
            seconds: dict[str, list[float]] = {way: [] for way in both}
            for _ in range(chosen.rounds):
                for way, run in both.items():
                    seconds[way].append(rounds.seconds(run))
            medians = {way: statistics.median(values) for way, values in seconds.items()}
            hourly = {way: 3600 / (s / chosen.steps * chosen.trial_steps / trials) for way, s in medians.items()}
            gain = statistics.median(
                a / b for a, b in zip(seconds["one after another"], seconds["stacked"], strict=True)
            )
            figures.append({"model": name, "trials": trials, **hourly, "gain": gain, "device": device})
            cells = [name, str(trials), *(f"{rate:,.0f}" for rate in hourly.values()), f"{gain:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    (chosen.output / "sweep.md").write_text("\n".join(lines) + "\n")
    (chosen.output / "sweep.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0
