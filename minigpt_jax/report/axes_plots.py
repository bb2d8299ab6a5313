"""A sweep's objective against each axis, over two axes at once, and the importance of each."""

import itertools
from collections.abc import Sequence

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigpt_jax.report import objective, style
from minigpt_jax.report.results import Axis, Configuration, Sweep
from minigpt_jax.report.runs import is_finite

HEAT_MAP_SIDE = 12
"""Values of an axis up to which a heat map is legible."""


def against(sweep: Sweep, axis: Axis) -> Figure:
    """A dot for each configuration's mean, small ones for its seeds, and crosses above for what diverged."""
    with style.drawing():
        figure, axes = style.panel(sweep.label(axis), axis.field, f"valid {objective.LABELS[sweep.figure]}")
        places = _places(axis, sweep.configurations)
        if not _in_strips(axis) and axis.log_scale:
            axes.set_xscale("log")
        seeds = [(places[one.number], score) for one in sweep.configurations for score in one.scores]
        means = [(places[one.number], one.mean) for one in sweep.configurations if one.mean is not None]
        if len(seeds) > len(means):
            _dots(axes, seeds, style.MUTED, 2.5, "a seed")
        _dots(axes, means, style.SERIES[-1], 5, "a configuration")
        if sweep.best is not None and sweep.best.mean is not None:
            _dots(axes, [(places[sweep.best.number], sweep.best.mean)], style.ACCENT, 8, "the best")
        style.loss_axis(axes, [score for _, score in seeds])
        lost = [places[one.number] for one in sweep.configurations if one.count("diverged")]
        if lost:
            above, top = axes.get_xaxis_transform(), [1.0] * len(lost)
            [crosses] = axes.plot(lost, top, transform=above, marker="x", color=style.BAD, markersize=5, linestyle="")
            crosses.set(clip_on=False, label="diverged")
        _ticks(axes, axis, sweep.configurations)
    return figure


def by_rate(sweep: Sweep, rate: Axis, other: Axis) -> Figure | None:
    """The objective against a learning rate, with a curve for each value of another axis.

    Where further axes vary, a curve is of the best at each rate. None where the other axis has too many values.
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
            for one in reversed(measured):  # the best come last, and stay
                if one.values[other.field] == value and one.mean is not None:
                    best[one.values[rate.field]] = one.mean
            points = sorted(best.items())
            drawn += best.values()
            # Of a list of rates a line leads from one to the next; between those of a range it would say nothing.
            line = "-" if rate.values else ""
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, linestyle=line, color=style.SERIES[i], marker=style.MARKERS[i], label=_say(value))
        style.loss_axis(axes, drawn)
        _ticks(axes, rate, measured)
        axes.legend(title=sweep.label(other), title_fontsize=8.5)
    return figure


def heat_map(sweep: Sweep, across: Axis, up: Axis) -> Figure | None:
    """Mean loss over the values of two axes; of several configurations in a cell, that of the best.

    None unless both axes have a list of values short enough to be read.
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
        low, high = float(np.nanmin(cells)), float(np.nanpercentile(cells, 90))  # a wild one does not pale the rest
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
    """A bar for each axis, the most important on top, with its share written beside it."""
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


def _places(axis: Axis, found: Sequence[Configuration]) -> dict[int, float]:
    """Where each configuration stands on the axis: its value, or the number of its category."""
    if not _in_strips(axis) and all(is_finite(one.values[axis.field]) for one in found):
        return {one.number: one.values[axis.field] for one in found}
    categories = _categories(axis, found)
    # Configurations of a category stand side by side, in a strip, in the order of their numbers.
    places: dict[int, float] = {}
    for i, category in enumerate(categories):
        members = sorted(one.number for one in found if _say(one.values[axis.field]) == category)
        offsets = np.linspace(-0.22, 0.22, len(members)) if len(members) > 1 else [0.0] * len(members)
        places |= {number: i + float(offset) for number, offset in zip(members, offsets, strict=True)}
    return places


def _in_strips(axis: Axis) -> bool:
    """Whether its values stand evenly apart, in their order: categories, and numbers too close to one another."""
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
