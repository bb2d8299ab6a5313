"""The report on runs: a table of figures, curves, differences of configuration, samples and compared samplers."""

import math
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from minigpt_jax.report import curves, objective
from minigpt_jax.report.format import NOTHING, duration, number, setting
from minigpt_jax.report.objective import Figure
from minigpt_jax.report.page import Block, Column, Links, Page, Plot, Plots, Sample, Section, Table, Text
from minigpt_jax.report.runs import Run, differing_fields, differing_fingerprints, is_finite

SAMPLES_SHOWN = 12
"""The most evaluations of a run whose samples are shown. If there are more, evenly spaced ones are shown."""
FIELDS_ACROSS = 4
"""The most runs for which the table of configurations has a column per run, and not a row."""


def build(runs: Sequence[Run], folder: Path) -> Page:
    """Builds the page. Its links are relative to `folder`."""
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
    """A table with a row for each run. If there are several, the best one is highlighted."""
    columns = [Column("run", figures=False)]
    titles = "parameters step tokens time train_loss final_loss best_loss at_step perplexity bits_per_byte".split()
    minor = {"parameters", "tokens", "train_loss", "at_step"}
    columns += [Column(title.replace("_", " "), minor=title in minor) for title in titles]
    rows, scores, figure = [], [], ranked_by(runs)
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
        score = best.get(figure) if figure else None
        scores.append(score if is_finite(score) else math.inf)
    leader = frozenset([scores.index(min(scores))]) if len(runs) > 1 and min(scores) < math.inf else frozenset()
    note = (
        "Losses are in nats per token: train loss is that of the latest training line, final loss that of the latest "
        "validation, and best loss that of the best validation. Perplexity and bits per byte are those of the best "
        "validation. Time is the time spent training, without evaluation, sampling and saving."
    )
    return Table(columns, rows, leader, note)


def ranked_by(runs: Sequence[Run]) -> Figure | None:
    """The figure by which the runs can be compared, or None if their corpora differ."""
    differ = differing_fingerprints(runs)
    if "corpus" in differ:
        return None
    return "bits_per_byte" if differ else objective.figure_of(differing_fields(runs) if len(runs) > 1 else ())


def comparability(runs: Sequence[Run]) -> list[Block]:
    """Warnings for runs whose losses are measured on different tokens or different text."""
    differ, figure = " and ".join(differing_fingerprints(runs)), ranked_by(runs)
    if figure is None:
        warnings = [
            f"The runs differ in {differ}: figures of different texts cannot be compared, so no run is highlighted as "
            "the best."
        ]
    elif figure == "bits_per_byte":
        warnings = objective.caveats([run.experiment for run in runs], same_corpus=True)
        if differ:
            reason = f"The runs differ in {differ}, so their losses are measured on different tokens"
            warnings.insert(0, f"{reason}; the runs are ranked by bits per byte.")
    else:
        warnings = []
    return [Text(text, warning=True) for text in warnings]


def plots(runs: Sequence[Run]) -> Plots:
    """Plots training and validation loss against steps, tokens and seconds, in the same plot if there is one run.

    If the losses cannot be compared, bits per byte are plotted instead. Learning rate and gradient norm come last.
    """
    ranking = ranked_by(runs)
    figure: Figure = ranking or "loss"
    figure_name = objective.NAMES[figure]
    if len(runs) == 1:
        drawn = {"loss": (figure_name.capitalize(), curves.of_splits(runs[0]))}
    else:
        drawn = {
            split: (f"{name.title()} {figure_name}", curves.of_runs(runs, split, ranking))
            for split, name in curves.SPLITS.items()
        }
    floors = [run.floor(figure) for run in runs]
    known = [value for value in floors if value is not None]  # nats per token are computed, so they may be rounded
    shared = len(known) == len(runs) and all(math.isclose(value, known[0], rel_tol=1e-6) for value in known)
    floor = known[0] if shared else None
    shown = [
        Plot(f"{name}-by-{x}", f"{title} by {x}", curves.plot(of_one, x, title, figure, floor))
        for x in ("step", "tokens", "seconds")
        for name, (title, of_one) in drawn.items()
    ]
    for column, title in (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")):
        if any(run.curve("train", y=column)[0] for run in runs):
            of_all = curves.of_runs(runs, "train", ranking)
            shown.append(Plot(f"{column}-by-step", f"{title} by step", curves.plot(of_all, "step", title, column)))
    return Plots(shown)


def configurations(runs: Sequence[Run]) -> tuple[str, list[Block]]:
    """The title and table of the fields that differ among the runs, or from the defaults if there is one run."""
    fields = differing_fields(runs)
    if len(runs) == 1:
        rows = [[name, setting(values[0])] for name, values in fields.items()]
        table = Table([Column("field", figures=False), Column("value", figures=False)], rows)
        return "Configuration: fields that differ from the defaults", [table] if rows else []
    title = "Configurations: fields that differ"
    if not fields:
        return title, [Text("The runs have the same configuration.")]
    if len(runs) <= FIELDS_ACROSS:
        columns = [Column("field", figures=False), *(Column(run.name, figures=False) for run in runs)]
        return title, [Table(columns, [[name, *map(setting, values)] for name, values in fields.items()])]
    columns = [Column("run", figures=False), *(Column(name, figures=False) for name in fields)]
    rows = [[run.name, *(setting(values[i]) for values in fields.values())] for i, run in enumerate(runs)]
    return title, [Table(columns, rows)]


def samples(runs: Sequence[Run]) -> list[Block]:
    """The texts sampled at each evaluation, the latest first. The latest text of each run is unfolded."""
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
    """The table of samplers that `sample --compare` saved for this run, if there is one."""
    saved = run.comparison()
    if saved is None:
        return []
    if not saved["rows"]:
        return [
            Text(f"{run.files.samples / 'compare.json'} cannot be read; write it again with sample --compare.", True)
        ]
    columns = [Column(title, figures=False) for title in ("method", "settings")]
    columns.append(Column("text", figures=False, long=True))
    figures = {"repeated_4grams": 3, "distinct_2": 3, "mean_logprob": 3, "tokens_per_second": 0}
    columns += map(Column, ["repeated 4-grams", "distinct 2-grams", "mean log-probability", "tokens per second"])
    rows = [
        [
            str(row.get("sampler", NOTHING)),
            setting(row.get("settings") or {}) or NOTHING,
            str(row.get("full_text", row.get("text", ""))),
            *(number(row.get(key), decimals) for key, decimals in figures.items()),
        ]
        for row in saved["rows"]
    ]
    prompt = saved.get("prompt", "")
    about = [f"Prompt: {prompt!r}" if prompt else "Prompt: none, from the start token"]
    about += [f"{key} {saved[key]}" for key in ("seed", "step") if key in saved]
    return [Text(" · ".join(about)), Table(columns, rows, note="Log-probabilities are in nats per token.")]


def links(runs: Sequence[Run], folder: Path) -> Links:
    """Links to the files of the runs, relative to the report."""
    found = []
    for run in runs:
        for path in (run.files.config, run.files.metrics, run.files.samples, run.files.tensorboard):
            if path.exists():
                found.append((f"{_whose(run, runs)}{path.name}", address(path, folder)))
    return Links(found)


def address(path: Path, folder: Path) -> str:
    """The address of a path, relative to a page in `folder`."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return urllib.parse.quote(Path(relative).as_posix())


def _whose(run: Run, runs: Sequence[Run]) -> str:
    """A prefix with the name of the run, if there are several."""
    return f"{run.name} · " if len(runs) > 1 else ""
