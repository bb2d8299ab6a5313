"""The report of a sweep: its best configuration as a command, all of them ranked, curves, axes and importances."""

import contextlib
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

from minigpt_jax.errors import UserError
from minigpt_jax.report import axes_plots, curves, objective, runs
from minigpt_jax.report.importance import importances
from minigpt_jax.report.page import Block, Column, Command, Links, Page, Plot, Plots, Sample, Section, Table, Text
from minigpt_jax.report.results import STATUSES, Configuration, Sweep, command
from minigpt_jax.report.run_page import address
from minigpt_jax.report.say import number, setting

ROWS_SHOWN = 100
"""Configurations that the table lists."""
HIGHLIGHTED = 3
"""Configurations whose curves have a colour of their own."""


def build(sweep: Sweep, folder: Path) -> Page:
    """The page that is to lie in `folder`."""
    return Page(
        f"Sweep {sweep.name}",
        lead(sweep),
        [
            section
            for section in (
                Section("Best configuration", best(sweep)),
                Section("Results", [results(sweep, ROWS_SHOWN)] if sweep.configurations else []),
                Section("Loss curves", loss_curves(sweep)),
                Section("The objective against each axis", against(sweep)),
                Section("Importance of each axis", importance(sweep)),
                Section("Run it again", again(sweep)),
                Section("Files", [links(sweep, folder)]),
            )
            if section.blocks
        ],
    )


def again(sweep: Sweep) -> list[Block]:
    """The sweep's command, and where a password that it lacks comes from."""
    if not sweep.command:
        return []
    password = "*** stands for the storage's password, which is kept nowhere: give it in $PGPASSWORD or ~/.pgpass."
    return [Command(sweep.command), *([Text(password)] if ":***@" in sweep.command else [])]


def lead(sweep: Sweep) -> str:
    """How many there are of what, in one line."""
    counts = [f"{sweep.counts[status]:,} {status}" for status in STATUSES if sweep.counts[status]]
    trials = f"{len(sweep.rows):,} trials of {len(sweep.configurations):,} configurations"
    parts = [trials, ", ".join(counts), sweep.file, f"{sweep.search} search" if sweep.search else ""]
    return " · ".join(part for part in parts if part)


def best(sweep: Sweep) -> list[Block]:
    """The best configuration's figures, its command and a sample."""
    one = sweep.best
    if one is None:
        return [Text("No trial is complete yet.")]
    where = ", ".join(f"{field} {setting(value, digits=4)}" for field, value in one.values.items())
    seeds = f"over {len(one.scores)} seeds" if len(one.scores) > 1 else "with one seed"
    spread = f" ± {one.spread:.4f}" if one.spread is not None else ""
    others = f"perplexity {number(one.perplexity, 2)}, {number(one.bits_per_byte, 4)} bits per byte"
    if sweep.figure == "bits_per_byte":
        others = f"loss {number(one.loss, 4)} in nats per token of its own tokenizer"
    blocks: list[Block] = [
        Text(f"Configuration {one.number} ({where}): {sweep.objective} {one.mean:.4f}{spread} {seeds}, {others}.")
    ]
    if sweep.figure == "bits_per_byte":
        blocks.append(Text("Ranked by bits per byte: the axes change what a token or the text is."))
    blocks += [Text(caveat, warning=True) for caveat in sweep.caveats]
    if any(one.count(status) for status in STATUSES[1:]):
        blocks.append(Text("Not all of its seeds came to an end, and no other configuration's did.", warning=True))
    if edges := at_the_edge(sweep, one):
        blocks.append(
            Text(f"It lies at the edge of {' and of '.join(edges)}: better ones may lie beyond.", warning=True)
        )
    blocks.append(Command(command(sweep, one)))
    first = one.complete[0]
    if run := _runs(sweep, [one]).get(str(first.get("trial"))):
        blocks += [
            Sample(f"Sampled by trial {first.get('trial')} at step {step:,}", text) for step, text in run.samples()[-1:]
        ]
    return blocks


def at_the_edge(sweep: Sweep, one: Configuration) -> list[str]:
    """Numeric axes of three values or more at whose least or greatest tried value a configuration lies."""
    found = []
    for axis in sweep.axes:
        if axis.numeric:
            tried = {other.values[axis.field] for other in sweep.configurations} - {None}
            if len(tried) > 2 and one.values[axis.field] in (min(tried), max(tried)):
                found.append(axis.field)
    return found


def results(sweep: Sweep, limit: int) -> Table:
    """The configurations, best first."""
    found = sweep.configurations
    columns = [Column("#"), *(Column(sweep.label(axis), figures=axis.numeric) for axis in sweep.axes)]
    columns += map(Column, [sweep.objective, "±", "seeds"])
    others = ("perplexity", "bits_per_byte") if sweep.figure == "loss" else ("loss",)
    columns += [Column(name.replace("_", " "), minor=True) for name in others]
    columns.append(Column("lost", figures=False))
    rows = [
        [
            str(one.number),
            *(setting(one.values[axis.field], digits=4) for axis in sweep.axes),
            number(one.mean, 4),
            number(one.spread, 4),
            str(len(one.scores)),
            *(number(getattr(one, name), 2 if name == "perplexity" else 4) for name in others),
            ", ".join(f"{one.count(status)} {status}" for status in STATUSES[1:] if one.count(status)),
        ]
        for one in found[:limit]
    ]
    note = (
        "Best first; a configuration that lost a seed stands after those that lost none. Loss is in nats per token. "
        f"The {sweep.objective} is the mean over the complete seeds ± their sample standard deviation."
    )
    if len(found) > limit:
        note = f"The best {limit} of {len(found):,}; the rest are in results.csv. {note}"
    return Table(columns, rows, frozenset() if sweep.best is None else frozenset({0}), note)


def loss_curves(sweep: Sweep) -> list[Block]:
    """Every trial's curve, the best configurations' in colour."""
    read = _runs(sweep, sweep.configurations)
    if not read:
        return []
    shown = []
    for split, x in (("valid", "step"), ("train", "step"), ("valid", "tokens"), ("valid", "seconds")):
        title = f"{curves.SPLITS[split].title()} {objective.NAMES[sweep.figure]}"
        drawn = curves.plot(trial_curves(sweep, read, split), x, title, sweep.figure)
        shown.append(Plot(f"{split}-by-{x}", f"{title} of all trials by {x}", drawn))
    note = "Grey: all trials. In colour: the best configurations, a curve for each seed."
    return [Plots(shown), Text(note + (" A cross ends a trial that diverged." if sweep.counts["diverged"] else ""))]


def trial_curves(sweep: Sweep, read: dict[str, runs.Run], split: str) -> list[curves.Curve]:
    """The trials' curves, the best configurations' last, so that they lie on top."""
    drawn = []
    for i, one in reversed(list(enumerate(sweep.configurations))):
        for row in one.rows:
            if run := read.get(str(row.get("trial"))):
                label = f"configuration {one.number}" if i < HIGHLIGHTED and row in one.complete else None
                drawn.append(curves.Curve(run, split, label, i % HIGHLIGHTED, row.get("status") == "diverged"))
    return drawn


def against(sweep: Sweep) -> list[Block]:
    """A plot for each axis that varies, the learning rate beside each other axis, and a heat map of two lists."""
    if sweep.best is None:
        return []
    informative = [
        axis for axis in sweep.axes if len({repr(one.values[axis.field]) for one in sweep.configurations}) > 1
    ]
    shown = [
        Plot(f"against-{axis.field.replace('.', '-')}", f"{sweep.objective} against {axis.field}", drawn)
        for axis in informative
        if (drawn := axes_plots.against(sweep, axis))
    ]
    rates = [axis for axis in informative if axis.numeric and axis.field.endswith("learning_rate")]
    for rate, other in product(rates, informative):
        if other is not rate and (drawn := axes_plots.by_rate(sweep, rate, other)):
            name = f"{rate.field}-by-{other.field}".replace(".", "-")
            shown.append(Plot(name, f"{sweep.objective} against {rate.field} for each {other.field}", drawn))
    if len(informative) == 2:
        for across, up in combinations(informative, 2):
            if drawn := axes_plots.heat_map(sweep, across, up):
                shown.append(Plot("heat-map", f"{sweep.objective} over {across.field} and {up.field}", drawn))
    if not shown:
        return []
    several = any(len(one.scores) > 1 for one in sweep.configurations)
    key = "Large dots: configurations' means; the largest: the best" + ("; small ones: single seeds" if several else "")
    return [Plots(shown), Text(key + ("; crosses: diverged." if sweep.counts["diverged"] else "."))]


def importance(sweep: Sweep) -> list[Block]:
    """Bars, or why there are none."""
    shares, reason = importances(sweep.axes, sweep.configurations)
    if not shares:
        return [Text(reason)]
    used = sum(one.mean is not None for one in sweep.configurations)
    return [
        Plots([Plot("importance", "Importance of each axis", axes_plots.importance(shares))]),
        Text(
            f"By fANOVA over {used:,} configurations: the share of the objective's variance over the searched space "
            "that an axis explains alone. What diverged has no loss and does not count."
        ),
    ]


def links(sweep: Sweep, folder: Path) -> Links:
    names = ("sweep.json", "results.jsonl", "results.csv", "trials")
    paths = [path for name in names if (path := sweep.folder / name).exists()]
    return Links([(path.name, address(path, folder)) for path in paths])


def _runs(sweep: Sweep, found: Sequence[Configuration]) -> dict[str, runs.Run]:
    """The run directories of these configurations' trials, by trial; one that is gone is left out."""
    read = {}
    for row in (row for one in found for row in one.rows):
        path = sweep.folder / str(row.get("run_dir") or Path("trials") / str(row.get("trial")))
        # A row that is damaged, or made to have something else read, names no folder of this sweep.
        with contextlib.suppress(UserError, ValueError):
            if path.resolve().is_relative_to(sweep.folder.resolve()):
                read[str(row.get("trial"))] = runs.read(path)
    return read
