"""The progress display of a sweep: lines outside a terminal, and the table in one."""

import io
import time
from pathlib import Path
from typing import Any

import jax.monitoring
import pytest
import tiny_sweep
from rich.console import Console

from minigpt_jax import display, sweep
from minigpt_jax.sweep import results
from minigpt_jax.sweep.table import Table
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress

GOOD, BAD = LossSums(300.0, 100, 400), LossSums(200.0, 100, 100)
"""The first has more nats per token, and fewer bits per byte."""


def shown(monkeypatch: pytest.MonkeyPatch, plan: sweep.Plan, terminal: bool = False) -> str:
    """The output for a sweep in which two configurations end."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=120, color_system=None, highlight=False, markup=False, emoji=False
    )
    monkeypatch.setattr(display, "console", console)
    with Table(plan, []) as table:
        for i, sums in enumerate((GOOD, BAD)):
            trial = plan.trial(i, {axis.field: axis.values[i] for axis in plan.axes}, 0)
            table.step(trial, 3, 12, sums)
            table.ended(results.row(trial, "complete", Progress(), sums, None), 12, 12)
    return out.getvalue()


def test_the_table_ranks_by_the_comparable_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = shown(monkeypatch, tiny_sweep.plan(tmp_path, "tokenizer.vocabulary_size=200,300", "seed=0"), terminal=True)
    assert "ranked by bits per byte" in said
    table = said[said.rindex("status") :]
    assert table.index("1.0820") < table.index("2.8854")
    said = shown(monkeypatch, tiny_sweep.plan(tmp_path, "model.width=8,16", "seed=0"), terminal=True)
    assert "bits per byte" not in said
    table = said[said.rindex("status") :]
    assert table.index("2.0000") < table.index("3.0000")


def test_caveats_about_bits_per_byte_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    shown(monkeypatch, tiny_sweep.plan(tmp_path, "tokenizer.kind=wordpiece,bpe", "seed=0"))
    assert "WordPiece drops spacing" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_axis_values_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool):
    values = ("a[/bold]b\x1b[2J", "[red]c")
    plan = tiny_sweep.plan(tmp_path, f"tokenizer.file={','.join(values)}", "seed=0")
    said = shown(monkeypatch, plan, terminal)
    assert "a[/bold]b\\x1b[2J" in said
    assert "[red]c" in said
    assert "\x1b[2J" not in said


def test_the_time_left_leaves_out_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    compiled: Any = "/jax/core/compile/backend_compile_duration"
    plan = tiny_sweep.plan(tmp_path, "model.width=8,16", "seed=0")
    monkeypatch.setattr(display, "console", Console(file=io.StringIO(), force_terminal=False))
    with Table(plan, []) as table:
        now[0] += 50.0
        jax.monitoring.record_event_duration_secs(compiled, 40.0)
        table.step(plan.trial(0, {"model.width": 8}, 0), 6, 12, GOOD)
        assert table._left() == " · 30 s left"  # a quarter of the sweep took 10 s
    with display.TrainingBar(0, 100) as bar:
        now[0] += 60.0
        jax.monitoring.record_event_duration_secs(compiled, 50.0)
        bar.logged(10, GOOD, 1.0)
    assert "90 s left" in display.console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    jax.monitoring.record_event_duration_secs(compiled, 5.0)
    assert table._watch.seconds == 70.0  # it does not listen any more, so the last compilation is not subtracted


def test_rows_of_earlier_versions_may_have_fewer_columns():
    assert results._csv([{"a": 1}, {"a": 2, "b": 3}]) == "a,b\n1,\n2,3\n"
