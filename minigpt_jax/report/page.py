"""A report as data: sections of text, tables, plots and samples, written as HTML and as Markdown.

The HTML is one file that loads nothing: plots are inline SVG whose colours are CSS variables, so that they follow the
reader's light or dark scheme. Markdown has the same plots as files beside it.
"""

import errno
import functools
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import filelock
import jinja2
import rich.box
import rich.console
import rich.measure
import rich.table
import rich.text
from matplotlib.figure import Figure

from minigpt_jax import display
from minigpt_jax.errors import UserError
from minigpt_jax.report import style
from minigpt_jax.storage.run_dir import write_whole


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        figures: stands to the right.
        long: texts, which wrap.
        minor: left out where a terminal is narrow.
    """

    title: str
    figures: bool = True
    long: bool = False
    minor: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of formatted cells, one a column.

    Attributes:
        best: indices of rows to set off.
        note: what the reader must know about it.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    best: frozenset[int] = frozenset()
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Plot:
    """A figure; `name` is that of its file beside the Markdown, `title` says what is seen."""

    name: str
    title: str
    figure: Figure

    @functools.cached_property
    def svg(self) -> str:
        """The file's text."""
        return style.svg(self.figure)


@dataclass(frozen=True)
class Plots:
    """Plots beside one another, as many as the width allows."""

    plots: Sequence[Plot]
    kind: ClassVar[str] = "plots"


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Command:
    """A line to paste into a shell."""

    text: str
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Sample:
    """Text from a model; shown folded unless `open`."""

    title: str
    text: str
    open: bool = False
    kind: ClassVar[str] = "sample"


@dataclass(frozen=True)
class Links:
    """Labels and the addresses of files, relative to the report."""

    links: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "links"


Block = Table | Plots | Text | Command | Sample | Links


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report: `lead` is the line under its title."""

    title: str
    lead: str
    sections: Sequence[Section]


def write(page: Page, folder: Path) -> Path:
    """Writes report.html, report.md and the plots that the latter shows; returns the path of the HTML.

    Raises UserError where the folder cannot be written.
    """
    plots = [
        plot
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Plots)
        for plot in block.plots
    ]
    files = {f"figures/{plot.name}.svg": plot.svg for plot in plots}
    files |= {f"report.{kind}": _render(f"page.{kind}.j2", page) for kind in ("md", "html")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".report.lock"):  # several workers may finish a sweep at once
            for name, text in files.items():
                write_whole(folder / name, display.printable(text))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); name another folder for the report with --output"
        ) from error
    return folder / "report.html"


def show(table: Table, console: rich.console.Console) -> None:
    """Prints the table, without its minor columns on a terminal too narrow for them; a file has room for all."""
    whole = _rich(table, table.columns)
    width = rich.measure.Measurement.get(console, console.options.update(max_width=10_000), whole).maximum
    if not console.is_terminal:
        rich.console.Console(file=console.file, width=max(width, console.width), markup=False).print(whole)
    elif width <= console.width:
        console.print(whole)
    else:
        console.print(_rich(table, [column for column in table.columns if not column.minor]))


def _rich(table: Table, columns: Sequence[Column]) -> rich.table.Table:
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in columns:
        shown.add_column(rich.text.Text(display.printable(column.title)), justify="right" if column.figures else "left")
    kept = [i for i, column in enumerate(table.columns) if column in columns]
    for i, row in enumerate(table.rows):
        shown.add_row(
            *(rich.text.Text(display.printable(row[j])) for j in kept), style="bold" if i in table.best else ""
        )
    return shown


def _render(template: str, page: Page) -> str:
    return _templates().get_template(template).render(page=page, palette=style.PALETTE)


@functools.cache
def _templates() -> jinja2.Environment:
    filters: dict[str, Callable[..., str]] = {
        "inline_svg": lambda plot: style.inline(plot.svg, plot.name, plot.title),
        "md": _markdown,
        "fenced": _fenced,
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("minigpt_jax.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a table's cell too."""
    text = re.sub(r"([\\`*\[\]|~#]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(html.escape(text, quote=False).split())


def _fenced(text: str, language: str = "text") -> str:
    """A code block, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
