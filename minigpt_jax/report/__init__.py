"""Reports: tables and plots of run directories and sweeps, in the terminal, in Markdown and as one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt_jax import display
from minigpt_jax.errors import UserError
from minigpt_jax.files import make_folder
from minigpt_jax.report import objective, page, results, run_page, runs, sweep_page
from minigpt_jax.report.page import Table

TERMINAL_ROWS = 10
SEVERAL_RUNS = Path("runs") / "report"


@dataclass(frozen=True)
class Report:
    """A report that has been written.

    Attributes:
        html: the path of the page.
        title, lead: the heading of the page and the line under it.
        table: the table that summarises the report in the terminal.
    """

    html: Path
    title: str
    lead: str
    table: Table


def report(paths: Sequence[str | Path], output: str | Path | None = None, fit: bool = False) -> list[Report]:
    """Writes one report on all run directories together, and one on each sweep.

    Args:
        paths: run directories and folders of sweeps. A folder that is neither stands for the runs and sweeps in it.
        output: the folder to write to, if there is a single report. The default is the folder of the run or the sweep,
            and runs/report for several runs.
        fit: whether the report of a sweep has a scaling law.

    Raises:
        UserError: one of the paths is not a run or a sweep, `output` cannot hold the reports, the configurations of a
            sweep cannot be compared by loss, or they are too few for a law. Nothing has been written but in the last
            case.
    """
    if not paths:
        raise UserError("report needs a run directory: give one or more, such as runs/quickstart")
    folders = [folder for path in paths for folder in _folders(Path(path).expanduser())]
    sweeps = [results.read(folder) for folder in folders if results.is_sweep(folder)]
    plain = runs.read_all([folder for folder in folders if not results.is_sweep(folder)])
    reports = len(sweeps) + bool(plain)
    if output is not None and reports > 1:
        raise UserError(
            f"--output {output}: one folder holds one report, but these paths give {reports}; give a single sweep, or "
            "only runs"
        )
    if fit and not sweeps:
        raise UserError("--fit: a scaling law is fitted to the configurations of a sweep; give one under runs/sweeps")
    for one in sweeps if fit else ():
        if one.figure != "loss":
            differ = ", ".join(axis.field for axis in one.axes if objective.figure_of([axis.field]) != "loss")
            raise UserError(
                f"--fit: the configurations of {one.folder} differ in {differ}, so their losses per token may not be "
                "comparable; give a sweep without axes under tokenizer.* and data.*"
            )
    output = None if output is None else make_folder(output, "--output")
    written = []
    if plain:
        folder = output or (plain[0].files.path if len(plain) == 1 else SEVERAL_RUNS)
        built = run_page.build(plain, folder)
        written.append(Report(page.write(built, folder), built.title, built.lead, run_page.summary(plain)))
    for one in sweeps:
        folder = output or one.folder
        built = sweep_page.build(one, folder, fit)
        table = sweep_page.results(one, TERMINAL_ROWS)
        written.append(Report(page.write(built, folder), built.title, built.lead, table))
    return written


def _folders(path: Path) -> list[Path]:
    """The folder itself if it is a run or a sweep, else those in it and in its folder `sweeps`.

    Damaged ones are skipped with a warning.
    """
    if not path.is_dir() or _is_known(path):
        return [path]
    found = []
    for folder in sorted(folder for folder in (*path.glob("*/"), *path.glob("sweeps/*/")) if _is_known(folder)):
        try:
            (results if results.is_sweep(folder) else runs).read(folder)
            found.append(folder)
        except UserError as error:
            display.warn(f"left out of the report: {error}")
    return found or [path]


def _is_known(folder: Path) -> bool:
    return results.is_sweep(folder) or (folder / "config.json").is_file()


def sweep(folder: str | Path) -> Path:
    """Writes report.html and report.md into the folder of a sweep, which may still be running.

    Returns the path of the page.

    Raises:
        UserError: the folder does not hold a sweep.
    """
    [written] = report([results.read(Path(folder)).folder])
    return written.html
