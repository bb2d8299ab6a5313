"""The part of a sweep's report on scale: loss against compute with its frontier, and a scaling law on request."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.ticker
from matplotlib.figure import Figure

from minigpt_jax.report import law_blocks, style
from minigpt_jax.report.law_blocks import Model
from minigpt_jax.report.page import Block, Plot, Plots, Text
from minigpt_jax.report.results import Row, Sweep
from minigpt_jax.report.runs import Run, is_finite


class Point(NamedTuple):
    """A validation of a trial."""

    flops: float
    loss: float


def blocks(sweep: Sweep, read: Mapping[str, Run], fitted: bool) -> list[Block]:
    """The plots and tables, or nothing if the losses cannot be compared or the rows name no compute.

    Args:
        read: the runs of the trials by their ids.
        fitted: whether to fit a scaling law.

    Raises:
        UserError: a law is asked for, and there are too few configurations of several sizes.
    """
    curves = _curves(sweep.rows, read) if sweep.figure == "loss" else []
    shown: list[Block] = []
    if curves:
        note = (
            "Compute is that of the matrix products of training, padding included. The frontier joins the lowest loss "
            "for each compute. A trial whose learning rate still has to fall is above what it could reach there."
        )
        shown += [Plots([Plot("loss-by-compute", "Loss against compute", _against_compute(curves))]), Text(note)]
    if fitted:
        floors = [floor for run in read.values() if (floor := run.floor("loss")) is not None]
        shown += law_blocks.blocks(models(sweep), floors[0] if floors else None)
    return shown


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points with a lower loss than all that took no more compute, by rising compute."""
    found: list[Point] = []
    for point in sorted(points):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def models(sweep: Sweep) -> list[Model]:
    """The best complete configuration of each number of parameters and of training tokens.

    So a sweep may also vary what both do not depend on, such as the learning rate.
    """
    found: dict[tuple[float, float], Model] = {}
    for one in sweep.configurations:  # best first
        rows = [row for row in one.complete if is_finite(row.get("parameters"), row.get("training_tokens"))]
        if rows and one.loss is not None:
            size, tokens = rows[0]["parameters"], rows[0]["training_tokens"]
            found.setdefault((size, tokens), Model(size, tokens, one.loss))
    return list(found.values())


def _curves(rows: Sequence[Row], read: Mapping[str, Run]) -> list[list[Point]]:
    """The validations of each trial. Its compute grows evenly with its steps."""
    curves = []
    for row in rows:
        run, flops, step = read.get(str(row.get("trial"))), row.get("training_flops"), row.get("step")
        if run is None or not is_finite(flops, step) or not (flops and step):
            continue
        steps, losses = run.curve("valid")
        curves.append([Point(flops * at / step, loss) for at, loss in zip(steps, losses, strict=True)])
    return [curve for curve in curves if curve]


def _against_compute(curves: Sequence[Sequence[Point]]) -> Figure:
    with style.drawing():
        figure, axes = style.panel("Loss against compute", "floating-point operations", "valid loss (nats per token)")
        for curve in curves:
            flops, losses = zip(*curve, strict=True)
            axes.plot(flops, losses, color=style.MUTED, linewidth=0.8, marker="o", markersize=2, zorder=1.5)
        best = frontier(list(itertools.chain.from_iterable(curves)))
        flops, losses = zip(*best, strict=True)
        axes.plot(flops, losses, color=style.ACCENT, marker="o", label="frontier", zorder=2.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:.0e}"))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        style.loss_axis(axes, [point.loss for curve in curves for point in curve])
        axes.legend(loc="best")
    return figure
