"""How much the first updates change the activations of each layer, by width, in both parametrisations.

    ./launch.sh experiments/coordinate_check.py

This is the coordinate check of Yang et al. (2022) for the experiment `tune_small.py`: models of several widths make
their first updates at the same learning rate. The figure shows for each layer the root mean square of the change of its
activations since the initial weights. In the standard parametrisation the lines rise: the wider the model, the more the
same rate changes it. In muP they are flat. The table has the exponents with which changes grow with the width after the
last update, so 0 is best. The figure and the numbers are in runs/coordinate_check.

Result for widths 32 to 512 after 4 updates at a rate of 1e-2, in 20 seconds on two CPU cores:

    layer         standard   muP
    embedding      +0.02    +0.01
    attention      +1.08    +0.07
    feed-forward   +1.19    +0.04
    logits         +0.68     0.00
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.ticker
import numpy as np
import rich.table
import tyro
from matplotlib.figure import Figure

from minigpt_jax import config, display
from minigpt_jax.cli import parser
from minigpt_jax.cli.train import load_experiment
from minigpt_jax.config import Experiment
from minigpt_jax.files import make_folder
from minigpt_jax.report import style
from minigpt_jax.train import coordinate_check
from minigpt_jax.train.coordinate_check import Activations
from minigpt_jax.trial import environment

TUNE_SMALL = Path(__file__).with_name("tune_small.py")
PARAMETRIZATIONS = {"standard": "standard", "mup": "muP"}
Measured = dict[str, list[dict[str, Activations]]]
"""The activations of each layer at each width, for each parametrisation."""


@dataclass(frozen=True)
class Arguments:
    """Measures how much the first updates change the activations of models of several widths."""

    experiment: tyro.conf.Positional[Path] = TUNE_SMALL
    """The experiment whose width varies."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Widths of the residual stream."""
    updates: int = 4
    """Updates after which activations are measured."""
    learning_rate: float = 1e-2
    """The learning rate, constant and the same for all widths."""
    output: Path = Path("runs/coordinate_check")
    """Folder of the figure and the numbers."""


def main(arguments: list[str]) -> int:
    """Measures, and writes the figure, the numbers and a table; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "coordinate_check.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    experiment = load_experiment(str(chosen.experiment))
    optimizer = dataclasses.replace(
        experiment.optimizer, learning_rate=chosen.learning_rate, schedule="constant", warmup_steps=0
    )
    experiment = dataclasses.replace(experiment, optimizer=optimizer)
    batches = first_batches(experiment, chosen.updates)
    measured: Measured = {}
    for name in PARAMETRIZATIONS:
        measured[name] = []
        for width in chosen.widths:
            model = dataclasses.replace(experiment.model, width=width, parametrization=name)
            one = dataclasses.replace(experiment, model=model)
            config.validate(one)
            measured[name].append(coordinate_check.activations(one, batches))
    drawn = figure(chosen.widths, measured)
    with style.drawing():
        drawn.savefig(chosen.output / "coordinate_check.png", facecolor=style.PALETTE["paper"][0], dpi=160)
    (chosen.output / "coordinate_check.json").write_text(json.dumps(numbers(chosen.widths, measured), indent=2) + "\n")
    display.console.print(table(chosen.widths, measured))
    display.console.print(f"written to {chosen.output}/coordinate_check.png and coordinate_check.json")
    return 0


def first_batches(experiment: Experiment, count: int) -> list[Any]:
    """The first training batches of the experiment's corpus."""
    prepared = environment.prepare(experiment).prepared
    stream = prepared.training_batches(environment.tf_data_batches(), experiment, count)
    return [next(stream) for _ in range(count)]


def figure(widths: tuple[int, ...], measured: Measured) -> Figure:
    """A row of plots for each parametrisation and a column for each layer, with a line for each update."""
    with style.drawing():
        layers = list(measured["standard"][0])
        drawn = Figure(figsize=(2.6 * len(layers), 5.2))
        grid = drawn.subplots(len(measured), len(layers), sharex=True, sharey="col", squeeze=False)
        for row, (name, found) in zip(grid, measured.items(), strict=True):
            for axes, layer in zip(row, layers, strict=True):
                changes = np.stack([one[layer].change for one in found])
                for i in range(1, changes.shape[1]):
                    colour, marker = (choices[(i - 1) % len(choices)] for choices in (style.SERIES, style.MARKERS))
                    axes.plot(widths, changes[:, i], color=colour, marker=marker, label=str(i))
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.set_xticks(widths, map(str, widths))
                axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            row[0].set_ylabel(f"{PARAMETRIZATIONS[name]}: change of activations")
        for axes, last, layer in zip(grid[0], grid[-1], layers, strict=True):
            style.log_axis(axes.yaxis)
            axes.set_title(layer.replace("feed_forward", "feed-forward").replace("_", " ").replace(".", ": "))
            last.set_xlabel("model.width")
        grid[0, 1].legend(title="updates", title_fontsize=8.5)
    return drawn


def numbers(widths: tuple[int, ...], measured: Measured) -> dict[str, Any]:
    """All sizes and changes, by parametrisation, width and layer."""
    return {
        name: {
            width: {layer: {key: value.tolist() for key, value in sizes._asdict().items()}
                    for layer, sizes in one.items()}
            for width, one in zip(widths, found, strict=True)
        }
        for name, found in measured.items()
    }  # fmt: skip


def table(widths: tuple[int, ...], measured: Measured) -> rich.table.Table:
    """The exponent of the width in each layer's change after the last update."""
    out = rich.table.Table(title="Exponents of the width in the change of activations")
    out.add_column("layer", no_wrap=True)
    for name in PARAMETRIZATIONS.values():
        out.add_column(name, justify="right")
    for layer in measured["standard"][0]:
        changes = [np.stack([one[layer].change[-1:] for one in found]) for found in measured.values()]
        out.add_row(layer, *(f"{coordinate_check.slopes(widths, change)[0]:+.2f}" for change in changes))
    return out
