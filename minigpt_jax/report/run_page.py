"""The report of ordinary runs: figures, curves, the configurations that differ, samples, samplers compared."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from minigpt_jax.report import curves
from minigpt_jax.report.page import Block, Column, Links, Page, Plot, Plots, Sample, Section, Table, Text
from minigpt_jax.report.runs import Run, differing_fields, differing_fingerprints
from minigpt_jax.report.say import NOTHING, duration, figure, number, setting

SAMPLES_SHOWN = 12
"""Evaluations of a run whose samples are shown; where there are more, they are picked evenly."""
FIELDS_ACROSS = 4
"""Runs up to which the table of configurations has a column for each."""


def build(runs: Sequence[Run], folder: Path) -> Page:
    """The page that is to lie in `folder`."""
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    corpora = sorted({run.experiment.data.corpus for run in runs})
    sections = [
        Section("Summary", [summary(runs), *comparability(runs)]),
        Section("Loss", [plots(runs)]),
        Section(*configurations(runs)),
        Section("Samples by evaluation", samples(runs)),
        *[Section(f"{_whose(run, runs)}Samplers compared", blocks) for run in runs if (blocks := samplers(run))],
        Section("Files", [links(runs, folder)]),
    ]
    lead = " · ".join([f"corpus: {', '.join(corpora)}", *([] if len(runs) == 1 else [run.name for run in runs])])
    return Page(title, lead, [section for section in sections if section.blocks])


def summary(runs: Sequence[Run]) -> Table:
    """A row for each run; the lowest validation loss among several is set off."""
    columns = [Column("run", figures=False)]
    titles = "parameters step tokens time train_loss final_loss best_loss at_step perplexity bits_per_byte".split()
    minor = {"parameters", "tokens", "train_loss", "at_step"}
    columns += [Column(title.replace("_", " "), minor=title in minor) for title in titles]
    rows, losses = [], []
    for run in runs:
        last, best = run.last or {}, run.best or {}
        training = run.lines["train"][-1] if run.lines.get("train") else {}
        steps = run.experiment.train.steps
        step = number(last.get("step"), 0)
        rows.append(
            [
                run.name,
                number(run.parameters, 0),
                step if steps is None or last.get("step") == steps else f"{step} of {steps:,}",
                number(last.get("tokens"), 0),
                duration(last.get("seconds")),
                number(training.get("loss"), 4),
                number((run.final or {}).get("loss"), 4),
                number(best.get("loss"), 4),
                number(best.get("step"), 0),
                number(best.get("perplexity"), 2),
                number(best.get("bits_per_byte"), 4),
            ]
        )
        losses.append(best.get("loss", float("inf")))
    leader = frozenset([losses.index(min(losses))]) if len(runs) > 1 and min(losses) < float("inf") else frozenset()
    note = (
        "Losses are nats a token: of the latest training line, the latest validation and the best one. Perplexity and "
        "bits per byte are those of the best validation. Time is that of training alone."
    )
    return Table(columns, rows, leader, note)


def comparability(runs: Sequence[Run]) -> list[Block]:
    """A warning where the runs' losses are not of the same tokens."""
    differ = differing_fingerprints(runs)
    if not differ:
        return []
    kept = "" if "corpus" in differ else "; compare bits per byte instead"
    return [
        Text(
            f"The runs differ in {' and '.join(differ)}, so their losses are not of the same tokens{kept}.",
            warning=True,
        )
    ]


def plots(runs: Sequence[Run]) -> Plots:
    """Training and validation loss against steps, tokens and seconds; of one run, in the same plot."""
    if len(runs) == 1:
        drawn = {"loss": ("Loss", curves.of_splits(runs[0]))}
    else:
        drawn = {split: (f"{name.title()} loss", curves.of_runs(runs, split)) for split, name in curves.SPLITS.items()}
    return Plots(
        [
            Plot(f"{name}-by-{x}", f"{title} by {x}", curves.plot(of_one, x, title))
            for x in ("step", "tokens", "seconds")
            for name, (title, of_one) in drawn.items()
        ]
    )


def configurations(runs: Sequence[Run]) -> tuple[str, list[Block]]:
    """Title and table of the fields that differ among the runs, or from the defaults if there is one run."""
    fields = differing_fields(runs)
    if len(runs) == 1:
        rows = [[name, setting(values[0])] for name, values in fields.items()]
        table = Table([Column("field", figures=False), Column("value", figures=False)], rows)
        return "Configuration, where it is not the default", [table] if rows else []
    title = "Configurations, where they differ"
    if not fields:
        return title, [Text("The runs have the same configuration.")]
    if len(runs) <= FIELDS_ACROSS:
        columns = [Column("field", figures=False), *(Column(run.name, figures=False) for run in runs)]
        return title, [Table(columns, [[name, *map(setting, values)] for name, values in fields.items()])]
    columns = [Column("run", figures=False), *(Column(name, figures=False) for name in fields)]
    rows = [[run.name, *(setting(values[i]) for values in fields.values())] for i, run in enumerate(runs)]
    return title, [Table(columns, rows)]


def samples(runs: Sequence[Run]) -> list[Block]:
    """Texts sampled at each evaluation, the latest first; each run's latest is open."""
    blocks: list[Block] = []
    for run in runs:
        texts = run.samples()
        shown = range(len(texts))
        if len(texts) > SAMPLES_SHOWN:
            shown = sorted({round(i * (len(texts) - 1) / (SAMPLES_SHOWN - 1)) for i in range(SAMPLES_SHOWN)})
            blocks.append(Text(f"{_whose(run, runs)}{len(shown)} of {len(texts)} evaluations"))
        of_step = {line["step"]: line for line in run.lines.get("valid", [])}
        for i in reversed(shown):
            step, text = texts[i]
            loss = number(of_step.get(step, {}).get("loss"), 4)
            title = f"{_whose(run, runs)}step {step:,}" + (f" · validation loss {loss}" if loss != NOTHING else "")
            blocks.append(Sample(title, text, open=i == len(texts) - 1))
    return blocks


def samplers(run: Run) -> list[Block]:
    """What `sample --compare` found, if it ran here."""
    saved = run.comparison()
    if saved is None:
        return []
    if not saved["rows"]:
        return [Text(f"{run.files.samples / 'compare.json'} cannot be read; make it anew with sample --compare.", True)]
    columns = [Column("sampler", figures=False), Column("settings", figures=False)]
    columns += map(Column, ["repeated 4-grams", "distinct 2-grams", "mean log-probability", "tokens a second"])
    columns.append(Column("text", figures=False, long=True))
    keys = ("repeated_4grams", "distinct_2", "mean_logprob", "tokens_per_second")
    rows = [
        [
            str(row.get("sampler", NOTHING)),
            setting(row.get("settings") or {}),
            *(figure(row.get(key)) for key in keys),
            str(row.get("text", "")),
        ]
        for row in saved["rows"]
    ]
    about = [f"{key}: {saved[key]!r}" for key in ("prompt", "seed", "step") if key in saved]
    return [Table(columns, rows, note=", ".join(about))]


def links(runs: Sequence[Run], folder: Path) -> Links:
    """Where the runs' own files are, seen from the report."""
    found = []
    for run in runs:
        for path in (run.files.config, run.files.metrics, run.files.samples, run.files.tensorboard):
            if path.exists():
                found.append((f"{_whose(run, runs)}{path.name}", address(path, folder)))
    return Links(found)


def address(path: Path, folder: Path) -> str:
    """A path as a relative address of a page in `folder`."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return urllib.parse.quote(Path(relative).as_posix())


def _whose(run: Run, runs: Sequence[Run]) -> str:
    """The run's name before what is said of it, where there are several."""
    return f"{run.name} · " if len(runs) > 1 else ""
