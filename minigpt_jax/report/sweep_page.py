"""The report on a sweep: the best configuration as a command, a ranking, curves, and plots and importances of axes."""

import contextlib
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

from minigpt_jax.errors import UserError
from minigpt_jax.report import axes_plots, curves, objective, runs, scaling
from minigpt_jax.report.format import number, setting
from minigpt_jax.report.importance import importances
from minigpt_jax.report.page import Block, Column, Command, Links, Page, Plot, Plots, Sample, Section, Table, Text
from minigpt_jax.report.results import STATUSES, Configuration, Sweep, command
from minigpt_jax.report.run_page import address

ROWS_SHOWN = 100
"""The most configurations that the table lists."""
HIGHLIGHTED = 3
"""The number of best configurations whose curves are drawn in colour."""


def build(sweep: Sweep, folder: Path, fit: bool = False) -> Page:
    """Builds the page. Its links are relative to `folder`. `fit` adds a scaling law.

    Raises:
        UserError: a law is asked for, and there are too few configurations of several sizes.
    """
    read = _runs(sweep, sweep.configurations)
    return Page(
        f"Sweep {sweep.name}",
        lead(sweep),
        [
            section
            for section in (
                Section("Best configuration", best(sweep)),
                Section("Results", [results(sweep, ROWS_SHOWN)] if sweep.configurations else []),
                Section("Loss curves", loss_curves(sweep, read)),
                Section("Scale", scaling.blocks(sweep, read, fit)),
                Section("Objective against each axis", against(sweep)),
                Section("Importance of each axis", importance(sweep)),
                Section("Run or resume this sweep", again(sweep)),
                Section("Files", [links(sweep, folder)]),
            )
            if section.blocks
        ],
    )


def again(sweep: Sweep) -> list[Block]:
    """The command of the sweep, and a hint at the password if one was removed from it."""
    if not sweep.command:
        return []
    password = "*** stands for the password of the storage, which is never saved: give it in $PGPASSWORD or ~/.pgpass."
    return [Command(sweep.command), *([Text(password)] if ":***@" in sweep.command else [])]


def lead(sweep: Sweep) -> str:
    """One line that counts trials and configurations and names the file and the search."""
    counts = [f"{sweep.counts[status]:,} {status}" for status in STATUSES if sweep.counts[status]]
    trials = f"{len(sweep.rows):,} trials of {len(sweep.configurations):,} configurations"
    parts = [trials, ", ".join(counts), sweep.file, f"{sweep.search} search" if sweep.search else ""]
    return " · ".join(part for part in parts if part)


def best(sweep: Sweep) -> list[Block]:
    """The figures of the best configuration, the command that trains it, and a sample."""
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
        blocks.append(Text("Ranked by bits per byte, because the axes change the tokens or the text."))
    blocks += [Text(caveat, warning=True) for caveat in sweep.caveats]
    if any(one.count(status) for status in STATUSES[1:]):
        blocks.append(Text("No configuration has completed all of its seeds, not even this one.", warning=True))
    if edges := at_the_edge(sweep, one):
        blocks.append(
            Text(
                f"It lies at the edge of the values tried for {' and for '.join(edges)}: values beyond may be better.",
                warning=True,
            )
        )
    blocks.append(Command(command(sweep, one)))
    first = one.complete[0]
    if run := _runs(sweep, [one]).get(str(first.get("trial"))):
        blocks += [
            Sample(f"Sampled by trial {first.get('trial')} at step {step:,}", text) for step, text in run.samples()[-1:]
        ]
    return blocks


def at_the_edge(sweep: Sweep, one: Configuration) -> list[str]:
    """The numeric axes, of at least three values, on which a configuration has the smallest or the largest one."""
    found = []
    for axis in sweep.axes:
        if axis.numeric:
            tried = {other.values[axis.field] for other in sweep.configurations} - {None}
            if len(tried) > 2 and one.values[axis.field] in (min(tried), max(tried)):
                found.append(axis.field)
    return found


def results(sweep: Sweep, limit: int) -> Table:
    """A table of the configurations, best first."""
    found = sweep.configurations
    columns = [Column("#"), *(Column(sweep.label(axis), figures=axis.numeric) for axis in sweep.axes)]
    columns += map(Column, [sweep.objective, "±", "seeds"])
    others = ("perplexity", "bits_per_byte") if sweep.figure == "loss" else ("loss",)
    columns += [Column(name.replace("_", " "), minor=True) for name in others]
    columns.append(Column("incomplete", figures=False))
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
        "Best first; configurations with a seed that was pruned, diverged or failed come after the others. Loss is in "
        f"nats per token. The {sweep.objective} is the mean over the complete seeds ± their sample standard deviation."
    )
    if len(found) > limit:
        note = f"The best {limit} of {len(found):,} configurations; results.csv has all of them. {note}"
    return Table(columns, rows, frozenset() if sweep.best is None else frozenset({0}), note)


def loss_curves(sweep: Sweep, read: dict[str, runs.Run]) -> list[Block]:
    """Plots the curves of all trials, with those of the best configurations in colour."""
    if not read:
        return []
    shown = []
    for split, x in (("valid", "step"), ("train", "step"), ("valid", "tokens"), ("valid", "seconds")):
        title = f"{curves.SPLITS[split].title()} {objective.NAMES[sweep.figure]}"
        drawn = curves.plot(trial_curves(sweep, read, split), x, title, sweep.figure)
        shown.append(Plot(f"{split}-by-{x}", f"{title} of all trials by {x}", drawn))
    note = "Grey: all trials. In colour: the best configurations, with a curve for each seed."
    crosses = " A cross marks the end of a trial that diverged." if sweep.counts["diverged"] else ""
    return [Plots(shown), Text(note + crosses)]


def trial_curves(sweep: Sweep, read: dict[str, runs.Run], split: str) -> list[curves.Curve]:
    """The curves of the trials. Those of the best configurations come last, so that they are drawn on top."""
    drawn = []
    for i, one in reversed(list(enumerate(sweep.configurations))):
        for row in one.rows:
            if run := read.get(str(row.get("trial"))):
                label = f"configuration {one.number}" if i < HIGHLIGHTED and row in one.complete else None
                drawn.append(curves.Curve(run, split, label, i % HIGHLIGHTED, row.get("status") == "diverged"))
    return drawn


def against(sweep: Sweep) -> list[Block]:
    """Plots against each axis that varies, against the learning rate by other axes, and a heat map of two axes."""
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
    curves_by_rate = []
    for rate, other in product(rates, informative):
        if other is not rate and (drawn := axes_plots.by_rate(sweep, rate, other)):
            name = f"{rate.field}-by-{other.field}".replace(".", "-")
            title = f"{sweep.objective} against {rate.field} for each {other.field}"
            curves_by_rate.append(Plot(name, title, drawn))
    shown += curves_by_rate
    if len(informative) == 2:
        for across, up in combinations(informative, 2):
            if drawn := axes_plots.heat_map(sweep, across, up):
                shown.append(Plot("heat-map", f"{sweep.objective} over {across.field} and {up.field}", drawn))
    if not shown:
        return []
    several = any(len(one.scores) > 1 for one in sweep.configurations)
    key = "Large dots: means of configurations; the largest dot: the best configuration"
    key += ("; small dots: single seeds" if several else "") + (
        "; crosses: configurations with a diverged seed" if sweep.counts["diverged"] else ""
    )
    if curves_by_rate:
        key += ". Along a curve, the larger marker is the best rate"
    return [Plots(shown), Text(f"{key}.")]


def importance(sweep: Sweep) -> list[Block]:
    """A bar chart of the importances, or the reason why there are none."""
    shares, reason = importances(sweep.axes, sweep.configurations)
    if not shares:
        return [Text(reason)]
    used = sum(one.mean is not None for one in sweep.configurations)
    return [
        Plots([Plot("importance", "Importance of each axis", axes_plots.importance(shares))]),
        Text(
            f"By fANOVA over {used:,} configurations: the share of the objective's variance over the search space that "
            "each axis explains alone. Configurations whose seeds all diverged have no loss and are not counted."
        ),
    ]


def links(sweep: Sweep, folder: Path) -> Links:
    names = ("sweep.json", "results.jsonl", "results.csv", "trials")
    paths = [path for name in names if (path := sweep.folder / name).exists()]
    return Links([(path.name, address(path, folder)) for path in paths])


def _runs(sweep: Sweep, found: Sequence[Configuration]) -> dict[str, runs.Run]:
    """The run directories of the configurations' trials, by trial. Missing ones are skipped."""
    read = {}
    for row in (row for one in found for row in one.rows):
        path = sweep.folder / str(row.get("run_dir") or Path("trials") / str(row.get("trial")))
        # A row that is damaged or forged may name a folder outside this sweep, which must not be read.
        with contextlib.suppress(UserError, ValueError):
            if path.resolve().is_relative_to(sweep.folder.resolve()):
                read[str(row.get("trial"))] = runs.read(path)
    return read
