"""The page of `minigpt compare`: measures of ways of sampling beside those of human text."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from minigpt_jax.generate.verdict import HUMAN, MEASURES, Verdict, nearest
from minigpt_jax.report import style
from minigpt_jax.report.format import NOTHING, number
from minigpt_jax.report.page import Block, Column, Command, Page, Plot, Plots, Section, Table, Text

TEXTS_SHOWN = 5
"""The most prefixes whose continuations are shown."""
TITLES = {
    "perplexity": "perplexity",
    "zipf": "Zipf coefficient",
    "self_bleu": "Self-BLEU4",
    "repetition": "ends in repetition",
    "repeated_4grams": "repeated 4-grams",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "mauve": "MAUVE",
    "length": "length",
    "distance": "distance",
    "tokens_per_second": "tokens/s",
}
_DECIMALS = {"perplexity": 2, "length": 1, "tokens_per_second": 0}
_MINOR = {"distinct_1", "distinct_3", "repetition", "length", "zipf"}


def build(verdicts: Sequence[Verdict], prompts: Sequence[str], lead: str, command: str) -> Page:
    """The page.

    Args:
        verdicts: the human row first, if there is one.
        prompts: the prefixes, which the texts of the verdicts begin with.
        lead: the line under the title.
        command: the command that makes this page again.
    """
    curves = _against_settings(verdicts)
    sections = [
        Section("Summary", [Text(_finding(verdicts)), table(verdicts), _intervals(verdicts)]),
        Section("Quality against diversity", [Plots(_quality(verdicts)), Text(_HOW_TO_READ)]),
        *([Section("Measures against settings", [Plots(curves)])] if curves else []),
        Section("Texts side by side", _texts(verdicts, prompts)),
        Section("Command", [Command(command)]),
    ]
    return Page("Ways of sampling compared", lead, sections)


_HOW_TO_READ = (
    "The nearer a method is to the human point, the better. To the left of it, texts are more probable than human "
    "ones, so they are dull; to the right of it, they are less probable, so they lose their thread."
)


def table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each method, the human one first. The method nearest to it is highlighted."""
    names = ["distance", *MEASURES, "tokens_per_second"]
    columns = [Column("method", figures=False), *(Column(TITLES[name], minor=name in _MINOR) for name in names)]
    rows = [[one.method, *(_shown(name, getattr(one, name)) for name in names)] for one in verdicts]
    best = nearest(verdicts)
    note = (
        "Perplexity is that of the texts under the model. All measures count tokens. Distance is the mean, over the "
        "measures, of the difference from human text, divided by that of the method which differs most. MAUVE needs "
        "hundreds of texts: with fewer it is close to 1 for every method."
    )
    return Table(columns, rows, frozenset() if best is None else frozenset([list(verdicts).index(best)]), note)


def _shown(name: str, value: Any) -> str:
    return NOTHING if value is None or math.isnan(value) else number(value, _DECIMALS.get(name, 3))


def _finding(verdicts: Sequence[Verdict]) -> str:
    best = nearest(verdicts)
    if best is None:
        return "There is no human text to compare with, so no method is marked as the nearest."
    return f"The method whose measures are nearest to those of human text is {best.method}."


def _intervals(verdicts: Sequence[Verdict]) -> Table:
    columns = [Column("95% interval", figures=False), *(Column(TITLES[name]) for name in MEASURES)]
    rows = [
        [one.method, *("–".join(_shown(name, end) for end in one.intervals[name]) for name in MEASURES)]
        for one in verdicts
    ]
    note = "The ends of bootstrap intervals over the texts. MAUVE's clusters are kept fixed."
    return Table(columns, rows, note=note)


def _quality(verdicts: Sequence[Verdict]) -> list[Plot]:
    """Plots of perplexity against each measure of diversity."""
    measures = ("self_bleu", "distinct_2", "repeated_4grams", "mauve")
    return [
        Plot(f"perplexity-{name}", f"{TITLES[name]} against perplexity", _scatter(verdicts, name))
        for name in measures
        if not all(math.isnan(getattr(one, name)) for one in verdicts)
    ]


def _scatter(verdicts: Sequence[Verdict], name: str) -> Figure:
    samplers = list(dict.fromkeys(one.sampler for one in verdicts if one.method != HUMAN))
    with style.drawing():
        figure, axes = style.panel(f"{TITLES[name]} against perplexity", "perplexity", TITLES[name])
        axes.set_xscale("log")
        for i, sampler in enumerate(samplers):
            of_one = sorted((one for one in verdicts if one.sampler == sampler), key=lambda one: one.perplexity)
            xs, ys = [one.perplexity for one in of_one], [getattr(one, name) for one in of_one]
            colour = style.SERIES[i % len(style.SERIES)]
            marker = style.MARKERS[(i + i // len(style.SERIES)) % len(style.MARKERS)]  # no two look alike
            axes.plot(xs, ys, color=colour, marker=marker, linewidth=0.8, markersize=5, label=style.short(sampler))
        for human in (one for one in verdicts if one.method == HUMAN):
            axes.axhline(getattr(human, name), color=style.MUTED, linewidth=0.8, linestyle="--", zorder=1)
            axes.axvline(human.perplexity, color=style.MUTED, linewidth=0.8, linestyle="--", zorder=1)
            axes.plot(
                human.perplexity,
                getattr(human, name),
                marker="*",
                markersize=13,
                linestyle="",
                color=style.INK,
                label=HUMAN,
            )
        style.log_axis(axes.xaxis)
        axes.legend(loc="best")
    return figure


def _against_settings(verdicts: Sequence[Verdict]) -> list[Plot]:
    """Plots of each measure against a setting, for each method that is there with three or more values of it."""
    plots = []
    for sampler in dict.fromkeys(one.sampler for one in verdicts if one.method != HUMAN):
        of_one = [one for one in verdicts if one.sampler == sampler]
        for setting in of_one[0].settings:
            values = {one.settings.get(setting) for one in of_one}
            if len(values) < 3 or not all(isinstance(value, int | float) for value in values):
                continue
            for name in (*MEASURES, "distance"):
                points = [(one.settings[setting], getattr(one, name)) for one in of_one]
                points = [(x, y) for x, y in points if y is not None and not math.isnan(y)]
                if points:
                    human = next((one for one in verdicts if one.method == HUMAN), None)
                    title = f"{TITLES[name]} of {sampler} by {setting}"
                    figure = _curve(
                        sorted(points), title, (setting, TITLES[name], sampler), human and getattr(human, name)
                    )
                    plots.append(Plot(f"{sampler}-{setting}-{name}", title, figure))
    return plots


def _curve(points: list[tuple[float, float]], title: str, names: tuple[str, str, str], human: float | None) -> Figure:
    with style.drawing():
        x, y, label = names
        figure, axes = style.panel(title, x, y)
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=style.SERIES[0], marker=style.MARKERS[0], linewidth=1.2, label=label)
        if human is not None and not math.isnan(human):
            axes.axhline(human, color=style.INK, linewidth=1.0, linestyle="--", label=HUMAN)
            axes.legend(loc="best")
    return figure


def _texts(verdicts: Sequence[Verdict], prompts: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for i, prompt in enumerate(prompts[:TEXTS_SHOWN]):
        columns = [Column("method", figures=False), Column("text", figures=False, long=True)]
        rows = [[one.method, one.texts[i]] for one in verdicts]
        blocks += [Text(f"Prefix: {prompt!r}"), Table(columns, rows)]
    return blocks
