"""`minigpt report RUN_DIR …`: tables and plots from run directories."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from minigpt_jax.cli import parser


@dataclass(frozen=True)
class Arguments:
    """Tables and plots: report.html, a page that loads no other file, and report.md.

    Several runs are compared with each other. The folder of a sweep gets the report of the sweep. Runs may still be in
    training.
    """

    run_dir: parser.RunDirs
    """Run directories, sweeps' folders, or folders of either, such as runs."""
    output: Path | None = None
    """Folder to write to; by default that of the run or the sweep, or runs/report for several runs."""
    fit: tyro.conf.FlagCreatePairsOff[bool] = False
    """Of a sweep over sizes and numbers of steps, also fit a scaling law, L = E + A / N^alpha + B / D^beta."""


def main(arguments: list[str]) -> int:
    """Writes the report. Returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt report")
    import jax

    jax.config.update("jax_platforms", "cpu")  # a report needs no accelerator, which may be training
    from minigpt_jax import display, report
    from minigpt_jax.report import page

    with display.status("fitting scaling laws" if chosen.fit else "drawing plots"):
        for written in report.report(chosen.run_dir, chosen.output, chosen.fit):
            display.console.print(display.printable(f"{written.title} · {written.lead}"))
            page.show(written.table, display.console)
            display.console.print(display.printable(str(written.html)))
    return 0
