"""Output in the terminal: progress bars with rate and remaining time, warnings, and the parameter table."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.monitoring
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from minigpt_jax.errors import printable as printable

# Markup is off, as texts written by users and models are printed.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
SECONDS_BETWEEN_LINES = 10.0
_COMPILING = {f"/jax/core/compile/{part}_duration" for part in ("jaxpr_to_mlir_module", "backend_compile")}


def warn(text: str) -> None:
    """Prints one line on standard error about a problem that does not stop the command."""
    print(f"minigpt: warning: {printable(text)}", file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2f}/s")


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[Any], title: str, total: int, unit: str = "documents") -> Iterator[Any]:
    """Shows a progress bar while the items are consumed, then prints a line with the time that it took."""
    start = time.perf_counter()
    with _progress() as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task)
    console.print(f"{title}: {total:,} {unit} in {time.perf_counter() - start:.1f} s")


class Stopwatch:
    """Measures the seconds since it was created, without the time that JAX spent compiling.

    Remaining time is estimated from it, as the steps that remain do not compile.
    """

    def __init__(self) -> None:
        self._start, self._compiling = time.perf_counter(), 0.0

    def __enter__(self) -> "Stopwatch":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self._start - self._compiling, 0.0)

    def _note(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _COMPILING:
            self._compiling += duration_secs


class TrainingBar:
    """Shows steps, loss, tokens per second and remaining time: a bar on a terminal, occasional lines elsewhere."""

    def __init__(self, step: int, total_steps: int) -> None:
        self._total = total_steps
        self._bar = _progress(TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[rate]}"))
        self._task = self._bar.add_task("training", completed=step, total=total_steps, loss="", rate="")
        self._watch, self._first = Stopwatch(), step
        self._printed = time.perf_counter()

    def __enter__(self) -> "TrainingBar":
        self._watch.__enter__()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._watch.__exit__()

    def advanced(self, step: int) -> None:
        """Moves the bar to a step."""
        self._bar.update(self._task, completed=step)

    def logged(self, step: int, sums: Any, tokens_per_second: float) -> None:
        """Shows the figures of a training line."""
        self._bar.update(self._task, loss=f"loss {sums.loss:.3f}", rate=f"{tokens_per_second:,.0f} tokens/s")
        now = time.perf_counter()
        if console.is_terminal or (now - self._printed < SECONDS_BETWEEN_LINES and step != self._total):
            return
        left = self._watch.seconds / max(step - self._first, 1) * (self._total - step)
        console.print(
            f"step {step:,}/{self._total:,} · loss {sums.loss:.3f} · {tokens_per_second:,.0f} tokens/s · "
            f"{left:,.0f} s left"
        )
        self._printed = now

    def evaluated(self, step: int, sums: Any) -> None:
        """The validation line is printed by the run itself."""


def parameter_table(params: Any) -> Table:
    """A table with a row for each layer, like Keras's `model.summary()`."""
    table = Table(title="Model", title_justify="left")
    table.add_column("layer")
    table.add_column("arrays")
    table.add_column("parameters", justify="right")
    for name, layer in sorted(params.items(), key=lambda item: _reading_order(item[0])):
        leaves = jax.tree_util.tree_leaves_with_path(layer)
        for path, leaf in leaves if len(leaves) <= 2 else []:
            label = ".".join([name, *(str(getattr(entry, "key", entry)) for entry in path)])
            table.add_row(label, "×".join(map(str, leaf.shape)), f"{leaf.size:,}")
        if len(leaves) > 2:
            table.add_row(name, f"{len(leaves)} arrays", f"{sum(leaf.size for _, leaf in leaves):,}")
    table.add_section()
    total = parameter_count(params)
    table.add_row("total", f"{total * 4 / 1e6:.2f} MB", f"{total:,}")
    return table


def parameter_count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _reading_order(name: str) -> tuple[int, str]:
    order = "token_embedding embedding_projection position_embedding block final_norm output_projection output".split()
    return next((i for i, prefix in enumerate(order) if name.startswith(prefix)), len(order)), name.zfill(20)


@contextlib.contextmanager
def status(title: str) -> Iterator[None]:
    """Shows a spinner on a terminal, for work of unknown length. Elsewhere it shows nothing."""
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        yield
