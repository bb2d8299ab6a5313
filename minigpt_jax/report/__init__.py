"""Reports: tables and plots from run directories and sweeps, as a terminal's table, Markdown and one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt_jax import display
from minigpt_jax.errors import UserError
from minigpt_jax.report import page, results, run_page, runs, sweep_page
from minigpt_jax.report.page import Table

TERMINAL_ROWS = 10
SEVERAL_RUNS = Path("runs") / "report"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        html: the path of the page.
        title, lead: its heading and the line under it.
        table: what sums it up.
    """

    html: Path
    title: str
    lead: str
    table: Table


def report(paths: Sequence[str | Path], output: str | Path | None = None) -> list[Report]:
    """Reports on run directories together, and on each sweep's folder among them by itself.

    Args:
        paths: run directories and sweeps' folders; of a folder that is neither, those that it holds.
        output: the folder to write to, for a single report. By default a run's or a sweep's own folder, and
            runs/report for several runs.

    Raises:
        UserError: one of the paths is no run, or `output` cannot hold what is asked for; nothing has been written.
    """
    if not paths:
        raise UserError("report needs a run directory; name one or more, such as runs/quickstart")
    folders = [folder for path in paths for folder in _folders(Path(path).expanduser())]
    output = None if output is None else Path(output).expanduser()
    sweeps = [results.read(folder) for folder in folders if results.is_sweep(folder)]
    plain = runs.read_all([folder for folder in folders if not results.is_sweep(folder)])
    reports = len(sweeps) + bool(plain)
    if output is not None and reports > 1:
        raise UserError(f"--output {output}: holds one report, and these are {reports}; name a sweep, or runs alone")
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; name a folder")
    written = []
    if plain:
        folder = output or (plain[0].files.path if len(plain) == 1 else SEVERAL_RUNS)
        built = run_page.build(plain, folder)
        written.append(Report(page.write(built, folder), built.title, built.lead, run_page.summary(plain)))
    for one in sweeps:
        folder = output or one.folder
        built = sweep_page.build(one, folder)
        table = sweep_page.results(one, TERMINAL_ROWS)
        written.append(Report(page.write(built, folder), built.title, built.lead, table))
    return written


def _folders(path: Path) -> list[Path]:
    """The folder, or the runs and sweeps that it holds if it is neither; damaged ones are left out, with a warning."""
    if not path.is_dir() or _is_known(path):
        return [path]
    found = []
    for folder in sorted(inner for inner in path.iterdir() if inner.is_dir() and _is_known(inner)):
        try:
            (results if results.is_sweep(folder) else runs).read(folder)
            found.append(folder)
        except UserError as error:
            display.warn(f"left out of the report: {error}")
    return found or [path]


def _is_known(folder: Path) -> bool:
    return results.is_sweep(folder) or (folder / "config.json").is_file()


def sweep(folder: str | Path) -> Path:
    """Writes report.html and report.md into a sweep's folder, finished or not; returns the path of the page.

    Raises UserError if the folder holds no sweep.
    """
    [written] = report([results.read(Path(folder)).folder])
    return written.html
