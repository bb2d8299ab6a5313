"""The style of plots: a palette for light and dark themes, a light grid, and text kept as text; and figures as SVG.

Figures are drawn in the colours of the light theme. In a page, each colour becomes a CSS variable.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = {
    "paper": ("#fffffe", "#14181d"),  # not exactly white, so that a plot can use white itself in both themes
    "ink": ("#24292f", "#e3e6ea"),
    "grid": ("#e4e7eb", "#30363d"),
    "muted": ("#9aa1a9", "#6b737d"),
    "blue": ("#0072b2", "#58b4ea"),
    "vermilion": ("#d05a00", "#ff9350"),
    "green": ("#00805f", "#2cc59a"),
    "purple": ("#a4468a", "#e08fc4"),
    "ochre": ("#8a6a00", "#e8c547"),
    "slate": ("#4d5966", "#bcc6d1"),
}
"""Colours by name, for the light and the dark theme: the hues of Okabe and Ito, shifted until they contrast with both
backgrounds. Each series also has a marker of its own, so that readers need not distinguish hues."""
INK, GRID, MUTED = (PALETTE[name][0] for name in ("ink", "grid", "muted"))
SERIES = tuple(PALETTE[name][0] for name in ("blue", "vermilion", "green", "purple", "ochre", "slate"))
MARKERS = ("o", "s", "^", "D", "v", "P")
ACCENT, BAD = SERIES[0], SERIES[1]

PANEL = (4.6, 3.1)
"""The size in inches, small enough that text stays legible on the screen of a phone."""
_RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,  # the name of a run may contain a $
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "minigpt",  # equal figures give equal files
}


_ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within this context figures are made and saved in this style. The caller's own settings are restored.

    Matplotlib's settings belong to the whole process, so one thread draws at a time.
    """
    with _ONE_THREAD, matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        for name, value in _RC.items():
            matplotlib.rcParams[name] = value  # pyright: ignore[reportArgumentType]
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts that matplotlib lacks
        yield


def panel(title: str, x: str, y: str, size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """A figure with a single plot, and the axes of that plot."""
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def short(name: str, length: int = 26) -> str:
    """Shortens a name for a legend. The middle is dropped, as runs are more often distinguished by the end."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def log_axis(axis: Any) -> None:
    """Labels the ticks of a log axis with plain numbers, such as 0.001, 0.003 and 0.01."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low) if low > 0 else 1.0
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 3.0, 5.0, 7.0)
    if decades < 0.35:
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    else:
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def loss_axis(axes: Axes, losses: list[float], ceiling: float | None = None) -> None:
    """Sets the range of the y axis for these losses, with a log scale if they span a wide range.

    A few outliers may lie beyond the range, so that the others are not squashed.

    Args:
        axes: the plot.
        losses: all values in the plot.
        ceiling: a value that has to be visible in any case, such as the highest of the runs that did not diverge.
    """
    if not losses:
        return
    low, high = min(losses), max(losses)
    usual = max(float(np.percentile(losses, 97)), ceiling or low)
    if high - low > 2.5 * (usual - low) > 0:
        high = usual
    if low > 0 and high / low > 4:
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        log_axis(axes.yaxis)
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def svg(figure: Figure) -> str:
    """The text of an SVG file of the figure, in the light theme."""
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    with drawing():
        figure.savefig(buffer, format="svg", facecolor=PALETTE["paper"][0], metadata=metadata, dpi=160)
    return buffer.getvalue()


def inline(text: str, name: str, title: str) -> Markup:
    """Turns an SVG file into an element of an HTML page that uses the page's colours. `name` makes its ids unique."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    names = {light: f"var(--{key})" for key, (light, _) in PALETTE.items()}
    text = re.sub(
        r"\b(fill|stroke): (#[0-9a-f]{6})\b", lambda match: f"{match[1]}: {names.get(match[2], match[2])}", text
    )
    text = re.sub(r'\b(id="|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace('xlink:href="#', f'href="#{name}-').replace('xlink:href="data:', 'href="data:')
    text = re.sub(r"font: ([\d.]+px) '[^;\"]*", r"font-size: \1", text)  # so that the page's font is used
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = f'<svg {view[0]} role="img" aria-label="{escape(title)}">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))
