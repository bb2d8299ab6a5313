"""The part of a sweep's report on scaling laws: the fitted law, how well it holds, and what other forms say.

Where the entropy of the text is known, as it is for the built-in corpus, the plots show it beside the E of the laws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minigpt_jax.report import law, style
from minigpt_jax.report.format import number
from minigpt_jax.report.law import Fitted, Form
from minigpt_jax.report.page import Block, Column, Plot, Plots, Table, Text

KEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the models, those with the least compute, to which the law is fitted too."""
_SAMPLES = 40
"""Fits for each interval, where there are many."""
_BEYOND = 0.25  # the share of the models, those with the most compute, whose losses a law has to predict


class Model(NamedTuple):
    """A trained configuration: parameters, training tokens, and the mean loss over its seeds in nats per token."""

    parameters: float
    tokens: float
    loss: float


class Look(NamedTuple):
    """A law that was fitted to some of the models: their lowest loss, and the law's E with its 95% interval."""

    lowest: float
    E: float
    interval: tuple[float, float]


def blocks(models: Sequence[Model], floor: float | None) -> list[Block]:
    """Fits laws to the models.

    Args:
        floor: the entropy of the text in nats per token, or None if it is unknown.

    Raises:
        UserError: there are too few models of several sizes.
    """
    by_compute = sorted(models, key=lambda model: model.parameters * model.tokens)
    sizes, tokens, losses = np.array(by_compute, float).reshape(-1, 3).T
    fitted = law.fit(sizes, tokens, losses)
    return [
        Text(_formula(fitted, len(by_compute))),
        _constants(fitted, floor),
        Plots(
            [
                Plot("fitted-by-measured", "Losses by the law", _fitted_by_measured(fitted, sizes, tokens, losses)),
                Plot("residuals", "Errors of the law", _residuals(fitted, sizes, tokens, losses)),
                Plot("floor-by-lowest-loss", "E by the lowest loss", _floors(looks(by_compute), floor)),
            ]
        ),
        Text(
            "The last plot fits the law to the models with the least compute alone, half of them or more, and shows E "
            "with its 95% interval against the lowest loss among them: how far one has to look to know E."
        ),
        _forms(sizes, tokens, losses),
    ]


def looks(by_compute: Sequence[Model]) -> list[Look]:
    """The law's E from the models with the least compute, of which more and more are taken.

    Args:
        by_compute: the models by rising compute.
    """
    found = []
    for share in KEPT:
        kept = np.array(by_compute[: round(share * len(by_compute))], float).reshape(-1, 3)
        if law.enough(kept[:, 0], kept[:, 1]):
            fitted = law.fit(*kept.T, samples=_SAMPLES)
            found.append(Look(kept[:, 2].min(), fitted.constants["E"], fitted.intervals["E"]))
    return found


def error_beyond(form: Form, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> float:
    """The root mean square error of log L for the quarter of the models with the most compute, by a law of this form
    that was fitted to the others. NaN if these are too few.

    Args:
        sizes, tokens, losses: of the models [M], by rising compute.
    """
    known = len(losses) - round(_BEYOND * len(losses))
    if not law.enough(sizes[:known], tokens[:known], form):
        return float("nan")
    fitted = law.fit(sizes[:known], tokens[:known], losses[:known], samples=0, form=form)
    return _error(fitted, sizes[known:], tokens[known:], losses[known:])


def _error(fitted: Fitted, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(fitted.loss(sizes, tokens) / losses) ** 2)))


def _formula(fitted: Fitted, count: int) -> str:
    alpha, beta = fitted.constants["alpha"], fitted.constants["beta"]
    return (
        f"The law L = {fitted.form.formula}, fitted to {count} models: the best configuration for each number N "
        "of parameters and D of training tokens. "
        f"By it, with C times the compute, the best number of parameters grows as C^{beta / (alpha + beta):.2f}, and "
        f"that of tokens as C^{alpha / (alpha + beta):.2f}."
    )


def _constants(fitted: Fitted, floor: float | None) -> Table:
    rows = [
        [name, _constant(value), "–".join(map(_constant, fitted.intervals[name]))]
        for name, value in fitted.constants.items()
    ]
    note = "Intervals come from fits to samples of the configurations with replacement."
    if floor is not None:
        note += f" The true entropy of the text is {number(floor, 4)} nats per token, which E estimates."
    return Table([Column("constant", figures=False), Column("value"), Column("95% interval")], rows, note=note)


def _constant(value: float) -> str:
    """A constant of a law, to four digits. No loss is known to a ten-thousandth, so less than that is 0."""
    return "0" if abs(value) < 1e-4 else f"{value:.4g}"


def _forms(sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Table:
    """Other forms beside Hoffmann et al.'s: their E, and their errors."""
    rows = []
    for name, form in {"Hoffmann et al. (2022)": law.HOFFMANN, **law.OTHERS}.items():
        if not law.enough(sizes, tokens, form):
            rows.append([name, form.formula, "", "", "", ""])
            continue
        fitted = law.fit(sizes, tokens, losses, samples=_SAMPLES, form=form)
        floor, interval = "0", ""
        if "E" in fitted.constants:
            floor, interval = _constant(fitted.constants["E"]), "–".join(map(_constant, fitted.intervals["E"]))
        errors = _error(fitted, sizes, tokens, losses), error_beyond(form, sizes, tokens, losses)
        rows.append(
            [name, form.formula, floor, interval, *(f"{error:.2%}" if error == error else "" for error in errors)]
        )
    columns = [Column("form", figures=False), Column("L", figures=False, minor=True), Column("E")]
    columns += [Column("95% interval"), Column("error"), Column("error beyond")]
    note = (
        "The error is the root mean square of that of log L. Beyond: for the quarter of the models with the most "
        "compute, by the law that is fitted to the others. Where there are no more models than constants, a law says "
        "nothing."
    )
    return Table(columns, rows, note=note)


def _fitted_by_measured(fitted: Fitted, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Figure:
    predicted = fitted.loss(sizes, tokens)
    with style.drawing():
        figure, axes = style.panel("Losses by the law", "measured loss", "loss by the law")
        ends = [min(*losses, *predicted), max(*losses, *predicted)]
        axes.plot(ends, ends, color=style.MUTED, linewidth=0.8, linestyle="--", label="equal")
        axes.plot(losses, predicted, color=style.ACCENT, marker="o", linestyle="", label="configuration")
        axes.legend(loc="best")
    return figure


def _residuals(fitted: Fitted, sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Figure:
    """Measured loss over that of the law, by training tokens, with a line for each size."""
    errors = 100 * np.log(losses / fitted.loss(sizes, tokens))
    with style.drawing():
        figure, axes = style.panel("Errors of the law", "training tokens", "measured above the law, %")
        for i, size in enumerate(sorted(set(sizes))):
            chosen = np.flatnonzero(sizes == size)
            chosen = chosen[np.argsort(tokens[chosen])]
            colour, marker = (choices[i % len(choices)] for choices in (style.SERIES, style.MARKERS))
            label = f"{size:,.0f} parameters"
            axes.plot(tokens[chosen], errors[chosen], color=colour, marker=marker, label=label)
        axes.axhline(0, color=style.MUTED, linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        ticks = sorted(set(tokens))
        axes.set_xticks(ticks[:: -(-len(ticks) // 6)])
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(places=0, sep=""))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.legend(loc="best", fontsize=7)
    return figure


def _floors(found: Sequence[Look], floor: float | None) -> Figure:
    with style.drawing():
        figure, axes = style.panel("E by the lowest loss", "lowest loss of the models", "E (nats per token)")
        lowest, E, intervals = [one.lowest for one in found], [one.E for one in found], [one.interval for one in found]
        below = [max(0.0, e - low) for e, (low, _) in zip(E, intervals, strict=True)]
        above = [max(0.0, high - e) for e, (_, high) in zip(E, intervals, strict=True)]
        axes.errorbar(lowest, E, yerr=[below, above], color=style.ACCENT, marker="o", capsize=3, label="E of the law")
        if floor is not None:
            axes.axhline(floor, color=style.MUTED, linestyle="--", label="entropy of the text")
        axes.invert_xaxis()
        axes.legend(loc="best")
        _room_above_zero(axes)
    return figure


def _room_above_zero(axes: Axes) -> None:
    """Lets the axis begin at 0, so that an E of 0 is seen as what it is."""
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
