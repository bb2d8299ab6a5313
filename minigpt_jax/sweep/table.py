"""Shows the progress of a sweep: in a terminal as a live table of configurations, best first, elsewhere as lines."""

import statistics
import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from minigpt_jax import display
from minigpt_jax.report import objective
from minigpt_jax.sweep import axes
from minigpt_jax.sweep.plan import Plan, Trial
from minigpt_jax.train.metrics import LossSums

_RANK = {"complete": 0, "training": 0, "pruned": 1, "diverged": 2, "failed": 3}


class Table:
    """A table with each configuration's score, spread over seeds, step and status, and the estimated time left.

    Args:
        rows: the rows of results of trials that ended earlier.
    """

    def __init__(self, plan: Plan, rows: list[dict[str, Any]]) -> None:
        self._plan = plan
        self._trials: dict[tuple[int, int], dict[str, Any]] = {(r["configuration"], r["seed"]): r for r in rows}
        self._share: dict[tuple[int, int], float] = dict.fromkeys(self._trials, 1.0)
        self._total = plan.trials * len(plan.seeds)
        self._watch, self._done_before = display.Stopwatch(), len(rows)
        self._printed = time.perf_counter()
        self._note = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=display.console,
        )
        self._task = self._bar.add_task("sweep", total=self._total, completed=len(rows), left="")
        self._live = Live(console=display.console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Table":
        plan = self._plan
        already = f", {self._done_before} of them done" if self._done_before else ""
        self.say(
            f"sweep {plan.name}: {plan.trials} configurations × {len(plan.seeds)} seeds by {plan.search}{already}; "
            f"results in {plan.folder}"
        )
        if plan.figure == "bits_per_byte":
            self.say("ranked by bits per byte: the axes change the tokens or the text, so losses are not comparable")
        for caveat in plan.caveats:
            display.warn(caveat)
        self._watch.__enter__()
        if display.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()
        if display.console.is_terminal:
            self._live.stop()
            display.console.print(self._table(rows=20))

    def step(self, trial: Trial, step: int, total_steps: int, sums: LossSums) -> None:
        """Shows the step of a trial, and the figures of its latest training or validation line."""
        key = (trial.configuration, trial.seed)
        known = {"status": "training", "step": step, **sums.summary(), **trial.values}
        self._trials[key] = known
        self._share[key] = step / total_steps
        if not display.console.is_terminal and time.perf_counter() - self._printed > display.SECONDS_BETWEEN_LINES:
            self._printed = time.perf_counter()
            done = sum(self._share.values()) / self._total
            self.say(f"{done:.0%} of the sweep{self._left()}")

    def ended(self, row: dict[str, Any], step: int, total_steps: int) -> None:
        """Shows the results of a trial that has ended."""
        key = (row["configuration"], row["seed"])
        self._trials[key], self._share[key] = row, 1.0
        if not display.console.is_terminal:
            values = " ".join(f"{axis.field}={_short(row.get(axis.field))}" for axis in self._plan.axes)
            measured = [
                f"{title} {row[name]:.{digits}f}"
                for name, title, digits in (
                    ("loss", "loss", 4),
                    ("perplexity", "perplexity", 2),
                    ("bits_per_byte", "bits per byte", 4),
                )
                if row[name] is not None and (name != "bits_per_byte" or self._plan.figure == name)
            ]
            done = sum(trial["status"] != "training" for trial in self._trials.values())
            line = f"[{done}/{self._total}] {row['trial']} {row['status']} at step {step:,}"
            self.say(" · ".join([line, *measured, *[values] * bool(values)]))

    def say(self, line: str) -> None:
        """Prints a line above the table."""
        display.console.print(display.printable(line))

    def waiting(self, configurations: int) -> None:
        """Shows that this worker waits until other workers finish so many configurations; 0 removes the note."""
        note = f"waiting for {configurations} configurations of other workers" if configurations else ""
        if note and not self._note and not display.console.is_terminal:
            self.say(note)
        self._note = note

    def _left(self) -> str:
        done = sum(self._share.values())
        if done <= self._done_before:
            return ""
        seconds = self._watch.seconds / (done - self._done_before) * (self._total - done)
        return f" · {seconds:,.0f} s left" if seconds < 120 else f" · {seconds / 60:,.0f} min left"

    def _render(self) -> Group:
        self._bar.update(self._task, completed=sum(self._share.values()), left=self._left().strip(" ·"))
        room = max(display.console.height - 8, 5)
        return Group(self._table(room), self._bar, Text(self._note))

    def _table(self, rows: int) -> RichTable:
        table = RichTable()
        figure = self._plan.figure
        titles = ["configuration", *(axis.field for axis in self._plan.axes), objective.NAMES[figure]]
        for name in [*titles, "spread", "step", "status"]:
            table.add_column(name, justify="left" if name == "status" else "right")
        configurations: dict[int, list[dict[str, Any]]] = {}
        for (configuration, _), trial in sorted(list(self._trials.items())):
            configurations.setdefault(configuration, []).append(trial)
        lines = []
        for configuration, trials in configurations.items():
            scores = [trial[figure] for trial in trials if trial[figure] is not None]
            status = max((trial["status"] for trial in trials), key=lambda status: _RANK[status])
            mean = statistics.fmean(scores) if scores else float("inf")
            spread = f"{statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
            values = [_short(trials[0].get(axis.field)) for axis in self._plan.axes]
            score = f"{mean:.4f}" if scores else "–"
            step = f"{max(trial['step'] for trial in trials):,}"
            lines.append(((_RANK[status], mean), [str(configuration), *values, score, spread, step, status]))
        lines.sort(key=lambda line: line[0])
        for _, cells in lines[:rows]:
            table.add_row(*cells)
        if len(lines) > rows:
            table.caption = f"and {len(lines) - rows} more"
        return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else display.printable(str(axes.plain(value)))
