"""Plots of a sweep's objective against each axis and against two axes at once, and of the importance of each axis."""

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigpt_jax.report import objective, style
from minigpt_jax.report.results import Axis, Configuration, Sweep
from minigpt_jax.report.runs import is_finite

HEAT_MAP_SIDE = 12
"""The most values that an axis of a legible heat map has."""


def against(sweep: Sweep, axis: Axis) -> Figure:
    """Plots a large dot for each configuration, a small one for each seed, and a cross for each that diverged."""
    with style.drawing():
        figure, axes = style.panel(sweep.label(axis), axis.field, f"valid {objective.LABELS[sweep.figure]}")
        x_of = _positions(axis, sweep.configurations)
        if not _in_strips(axis) and axis.log_scale:
            axes.set_xscale("log")
        seeds = [(x_of[one.number], score) for one in sweep.configurations for score in one.scores]
        means = [(x_of[one.number], one.mean) for one in sweep.configurations if one.mean is not None]
        if len(seeds) > len(means):
            _dots(axes, seeds, style.MUTED, 2.5, "seed")
        _dots(axes, means, style.SERIES[-1], 5, "mean of a configuration")
        if sweep.best is not None and sweep.best.mean is not None:
            _dots(axes, [(x_of[sweep.best.number], sweep.best.mean)], style.ACCENT, 8, "best configuration")
        style.loss_axis(axes, [score for _, score in seeds])
        diverged = [x_of[one.number] for one in sweep.configurations if one.count("diverged")]
        if diverged:
            transform, top = axes.get_xaxis_transform(), [1.0] * len(diverged)
            [crosses] = axes.plot(
                diverged, top, transform=transform, marker="x", color=style.BAD, markersize=5, linestyle=""
            )
            crosses.set(clip_on=False, label="diverged")
        _ticks(axes, axis, sweep.configurations)
    return figure


def by_rate(sweep: Sweep, rate: Axis, other: Axis) -> Figure | None:
    """Plots the objective against a learning rate, with a curve for each value of another axis.

    The best rate of each curve has a larger marker. If further axes vary, a curve shows the best configuration at each
    rate. Returns None if the other axis has too many values.
    """
    measured = [one for one in sweep.configurations if one.mean is not None]
    taken = {one.values[other.field] for one in measured}
    values = [value for value in other.values or sorted(taken) if value in taken]
    if not 2 <= len(values) <= len(style.SERIES):
        return None
    with style.drawing():
        title = f"{sweep.label(rate)} for each {sweep.label(other)}"
        figure, axes = style.panel(title, rate.field, f"valid {objective.LABELS[sweep.figure]}")
        if rate.log_scale:
            axes.set_xscale("log")
        drawn: list[float] = []
        for i, value in enumerate(values):
            best: dict[float, float] = {}
            for one in reversed(measured):  # the best ones come last and overwrite the others
                if one.values[other.field] == value and one.mean is not None:
                    best[one.values[rate.field]] = one.mean
            points = sorted(best.items())
            drawn += best.values()
            # Lines connect the rates of a list. Between the random rates of a range they would have no meaning.
            line = "-" if rate.values else ""
            xs, ys = zip(*points, strict=True)
            look: dict[str, Any] = {"color": style.SERIES[i], "marker": style.MARKERS[i]}
            axes.plot(xs, ys, linestyle=line, label=_say(value), **look)
            axes.plot(*min(points, key=lambda point: point[1]), linestyle="", markersize=9, **look)
        style.loss_axis(axes, drawn)
        _ticks(axes, rate, measured)
        axes.legend(title=sweep.label(other), title_fontsize=8.5)
    return figure


def heat_map(sweep: Sweep, across: Axis, up: Axis) -> Figure | None:
    """Plots the mean objective for each pair of values of two axes. A cell shows the best of its configurations.

    Returns None unless both axes have lists of values that are short enough to be read.
    """
    if not all(2 <= len(axis.values) <= HEAT_MAP_SIDE for axis in (across, up)):
        return None
    cells = np.full((len(up.values), len(across.values)), np.nan)
    for one in reversed(sweep.configurations):
        x, y = one.values[across.field], one.values[up.field]
        if one.mean is not None and x in across.values and y in up.values:
            cells[up.values.index(y), across.values.index(x)] = one.mean
    if not np.isfinite(cells).any():
        return None
    with style.drawing():
        figure, axes = style.panel(f"Mean {sweep.objective}", across.field, up.field)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        low, high = float(np.nanmin(cells)), float(np.nanpercentile(cells, 90))  # outliers do not dominate the scale
        axes.imshow(cells, cmap="viridis_r", aspect="auto", origin="lower", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(cells):
            if np.isfinite(value):
                dark = value > low + 0.45 * (high - low)  # viridis_r: the higher, the darker
                text = f"{value:.3f}" if len(across.values) <= 7 else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        axes.set_xticks(range(len(across.values)), [_say(value) for value in across.values])
        axes.set_yticks(range(len(up.values)), [_say(value) for value in up.values])
    return figure


def importance(shares: dict[str, float]) -> Figure:
    """Plots a bar for each axis, with its share beside it. The most important axis is at the top."""
    with style.drawing():
        height = 1.0 + 0.34 * len(shares)
        figure, axes = style.panel("Importance", "share of the objective's variance", "", (style.PANEL[0], height))
        fields, values = list(shares), list(shares.values())
        axes.barh(fields, values, color=style.ACCENT, height=0.6)
        for i, value in enumerate(values):
            axes.text(value + 0.01, i, f"{value:.0%}", va="center")
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    return figure


def _positions(axis: Axis, found: Sequence[Configuration]) -> dict[int, float]:
    """The position of each configuration on the x axis: its value, or the index of its category."""
    if not _in_strips(axis) and all(is_finite(one.values[axis.field]) for one in found):
        return {one.number: one.values[axis.field] for one in found}
    categories = _categories(axis, found)
    # The configurations of a category are drawn side by side in a strip, in the order of their numbers.
    positions: dict[int, float] = {}
    for i, category in enumerate(categories):
        members = sorted(one.number for one in found if _say(one.values[axis.field]) == category)
        offsets = np.linspace(-0.22, 0.22, len(members)) if len(members) > 1 else [0.0] * len(members)
        positions |= {number: i + float(offset) for number, offset in zip(members, offsets, strict=True)}
    return positions


def _in_strips(axis: Axis) -> bool:
    """Whether values are drawn at equal distances: categories, and numbers that would be too close to each other."""
    if not axis.numeric or not axis.values or axis.log_scale:
        return not axis.numeric
    ordered = sorted(set(axis.values))
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    return bool(gaps) and min(gaps) < 0.1 * (ordered[-1] - ordered[0])


def _categories(axis: Axis, found: Sequence[Configuration]) -> list[str]:
    return list(dict.fromkeys([*map(_say, axis.values), *(_say(one.values[axis.field]) for one in found)]))


def _ticks(axes: Axes, axis: Axis, found: Sequence[Configuration]) -> None:
    if _in_strips(axis):
        categories = _categories(axis, found)
        axes.set_xticks(range(len(categories)), categories)
        axes.set_xlim(-0.5, len(categories) - 0.5)
        axes.grid(False, axis="x")
    elif axis.values and len(axis.values) <= 8:
        axes.set_xticks(list(axis.values), [_say(value) for value in axis.values])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    elif axis.log_scale:
        style.log_axis(axes.xaxis)


def _say(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _dots(axes: Axes, points: Sequence[tuple[float, float]], colour: str, size: float, label: str) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=colour, marker="o", markersize=size, linestyle="", label=label)
