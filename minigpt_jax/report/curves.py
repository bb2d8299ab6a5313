"""Loss curves: those of a few runs in colours, or those of a sweep's many trials in grey with the best in colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.ticker
from matplotlib.figure import Figure

from minigpt_jax.report import style
from minigpt_jax.report.objective import LABELS
from minigpt_jax.report.runs import Run, is_finite

SPLITS = {"train": "training", "valid": "validation"}
MARKED = 60
"""The most points of a curve that are drawn with markers."""
NOISY = 500
"""The number of points from which a curve is drawn thinner, as its noise would hide the curves under it."""
RASTER_FROM = 150
"""The number of grey curves from which they are drawn as one raster image, to limit the size of the page."""


@dataclass(frozen=True)
class Curve:
    """A run's curve on a split, and how it is drawn.

    Attributes:
        label: its name in the legend, where curves of the same name share an entry. None draws it in grey, without a
            name.
        series: the index of its colour and marker.
        diverged: whether to mark its end with a cross.
    """

    run: Run
    split: str
    label: str | None = None
    series: int = 0
    diverged: bool = False


def of_runs(runs: Sequence[Run], split: str, figure: str | None = "loss") -> list[Curve]:
    """A curve for each run, in a colour of its own. If there are more runs than colours, the best ones get them."""
    order = sorted(range(len(runs)), key=lambda i: _finite((runs[i].best or {}).get(figure or "")))
    chosen = sorted(order[: len(style.SERIES)])
    return [
        Curve(run, split, run.name, chosen.index(i)) if i in chosen else Curve(run, split) for i, run in enumerate(runs)
    ]


def of_splits(run: Run) -> list[Curve]:
    """The training and validation curves of one run."""
    return [Curve(run, split, name, series) for series, (split, name) in enumerate(reversed(SPLITS.items()))]


def plot(curves: Sequence[Curve], x: str, title: str, y: str = "loss", floor: float | None = None) -> Figure:
    """Plots a column of metrics.jsonl against `step`, `tokens` or `seconds`. `floor` adds a line for the entropy."""
    points = [curve.run.curve(curve.split, x, y) for curve in curves]
    longest = max((value for xs, _ in points for value in xs), default=0.0)
    unit, scale = _unit(x, longest)
    crowd = sum(curve.label is None for curve in curves)
    with style.drawing():
        figure, axes = style.panel(f"{title} by {x}", unit, LABELS.get(y, title.lower()))
        ceiling, named = None, {}
        for curve, (xs, ys) in zip(curves, points, strict=True):
            xs = [value / scale for value in xs]
            if curve.label is None:
                [line] = axes.plot(xs, ys, color=style.MUTED, linewidth=0.8, zorder=1.5)
                line.set_alpha(min(0.6, max(0.15, 40 / crowd)))  # many overlapping lines stay distinguishable
                line.set_rasterized(crowd >= RASTER_FROM)
                line.set_marker("." if len(ys) == 1 else "")  # a line through one point is not seen
            else:
                colour, marker = style.SERIES[curve.series], style.MARKERS[curve.series]
                [line] = axes.plot(xs, ys, color=colour, linewidth=1.1 if crowd else 1.6, zorder=2.5)
                if len(ys) > NOISY:
                    line.set(linewidth=0.7, alpha=0.55, zorder=2.2)
                line.set_marker(marker if len(ys) == 1 or (len(ys) <= MARKED and not crowd) else "")
                named.setdefault((curve.series, curve.label), line)
                if ys and not curve.diverged:
                    ceiling = max(ceiling or 0.0, *ys)
            if curve.diverged and xs:
                axes.plot(xs[-1], ys[-1], marker="x", color=style.BAD, markersize=5, linestyle="", zorder=3)
        losses = [loss for _, ys in points for loss in ys]
        if floor is not None and losses:
            line = axes.axhline(floor, color=style.SERIES[-1], linewidth=1.2, linestyle="--", zorder=1.8)
            named[len(style.SERIES), "entropy of the text"] = line
            losses.append(floor)
        if y == "learning_rate":
            axes.set_ylim(0, 1.05 * max(losses, default=1.0) or 1.0)
        else:
            style.loss_axis(axes, losses, ceiling)
        axes.set_xlim(0, 1.04 * longest / scale or 1.0)  # markers at the last value are not cut
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=x == "step", steps=[1, 2, 5, 10]))
        if x == "step":
            axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        elif x == "tokens":
            axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        if not losses:
            axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color=style.INK)
        if named and (len(named) > 1 or crowd):
            ordered = sorted(named.items(), key=lambda item: item[0])
            lines, labels = [line for _, line in ordered], [style.short(label) for (_, label), _ in ordered]
            # Finding the emptiest corner is slow with many points. A loss curve leaves the upper right one empty.
            axes.legend(lines, labels, loc="best" if len(losses) < 5000 else "upper right")
    return figure


def _finite(value: Any) -> float:
    return value if is_finite(value) else math.inf


def _unit(x: str, longest: float) -> tuple[str, float]:
    """The label of the x axis, and the divisor that converts its values to the unit of the label."""
    if x == "seconds":
        for name, size in (("hours", 3600.0), ("minutes", 60.0)):
            if longest >= 3 * size:
                return f"{name} of training", size
        return "seconds of training", 1.0
    return {"step": "step", "tokens": "tokens trained on"}[x], 1.0
