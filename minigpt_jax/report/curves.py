"""Loss curves: of a few runs in colours, or of a sweep's many trials in grey with the best in front."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.ticker
from matplotlib.figure import Figure

from minigpt_jax.report import style
from minigpt_jax.report.runs import Run

SPLITS = {"train": "Training loss", "valid": "Validation loss"}
LOSS = "loss (nats a token)"
RASTER_FROM = 150
"""Grey curves in a plot from which they become one picture, lest the page grow with each."""


@dataclass(frozen=True)
class Curve:
    """A run as it is drawn.

    Attributes:
        label: its name in the legend; none for one of the crowd, in grey.
        series: which colour and marker.
        diverged: its end is marked.
    """

    run: Run
    label: str | None = None
    series: int = 0
    diverged: bool = False


def of_runs(runs: Sequence[Run]) -> list[Curve]:
    """A colour for each run; where there are more runs than colours, the best have them."""
    order = sorted(range(len(runs)), key=lambda i: runs[i].best["loss"] if runs[i].best else float("inf"))
    chosen = sorted(order[: len(style.SERIES)])
    return [
        Curve(run, run.name, chosen.index(i) % len(style.SERIES)) if i in chosen else Curve(run)
        for i, run in enumerate(runs)
    ]


def plot(curves: Sequence[Curve], split: str, x: str) -> Figure:
    """Loss of a split against `step`, `tokens` or `seconds`."""
    with style.drawing():
        longest = max((max(curve.run.curve(split, x)[0], default=0.0) for curve in curves), default=0.0)
        unit, scale = _unit(x, longest)
        figure, axes = style.panel(f"{SPLITS[split]} by {x}", unit, LOSS)
        crowd = [curve for curve in curves if curve.label is None]
        losses, ceiling = [], None
        for curve in [*crowd, *(curve for curve in curves if curve.label is not None)]:
            xs, ys = curve.run.curve(split, x)
            xs = [value / scale for value in xs]
            losses += ys
            if curve.label is None:
                [line] = axes.plot(xs, ys, color=style.MUTED, linewidth=0.8, alpha=0.6, zorder=1.5)
                line.set_rasterized(len(crowd) >= RASTER_FROM)
            else:
                marker = style.MARKERS[curve.series] if len(ys) <= 60 else ""
                axes.plot(xs, ys, color=style.SERIES[curve.series], marker=marker, label=curve.label, zorder=2.5)
                if ys and not curve.diverged:
                    ceiling = max(ceiling or 0.0, *ys)
            if curve.diverged and xs:
                axes.plot(xs[-1], ys[-1], marker="x", color=style.BAD, markersize=5, linestyle="", zorder=3)
        style.loss_axis(axes, losses, ceiling)
        if x == "tokens":
            axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        elif x == "step":
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        if not losses:
            axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color=style.INK)
        named = [line for line in axes.lines if not line.get_label().startswith("_child")]
        if named and len(curves) > 1:
            axes.legend(named, [style.short(str(line.get_label())) for line in named], loc="upper right")
    return figure


def _unit(x: str, longest: float) -> tuple[str, float]:
    """An axis's label, and what its values are divided by."""
    if x == "seconds":
        for name, size in (("hours", 3600.0), ("minutes", 60.0)):
            if longest >= 3 * size:
                return f"{name} of training", size
        return "seconds of training", 1.0
    return {"step": "step", "tokens": "tokens trained on"}[x], 1.0
