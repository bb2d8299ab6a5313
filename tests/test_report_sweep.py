"""The sweep's report: ranking, spread, plots, importances and the best configuration's command."""

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import fake_sweep
import numpy as np
import pytest
import tyro
from pages import Page

from minigpt_jax import report
from minigpt_jax.cli import main
from minigpt_jax.cli import train as train_cli
from minigpt_jax.config import flatten
from minigpt_jax.errors import UserError
from minigpt_jax.report import axes_plots, curves, results, runs, style, sweep_page
from minigpt_jax.report.results import Axis, Configuration
from minigpt_jax.sweep import axes

QUICKSTART = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweeps") / "rates"
    fake_sweep.write_sweep(path, number=14, file=QUICKSTART)
    return path


@pytest.fixture(scope="module")
def sweep(folder: Path) -> results.Sweep:
    return results.read(folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(report.sweep(folder))


def row(configuration: int, seed: int, loss: float | None, status: str = "complete", **values: Any) -> dict[str, Any]:
    trial = f"{configuration}-{seed}"
    return {"configuration": configuration, "trial": trial, "seed": seed, "loss": loss, "status": status, **values}


def ranked(*rows: dict[str, Any]) -> list[Configuration]:
    return results.rank(results.configurations(rows, ["x"]))


def test_mean_and_spread_over_seeds(sweep: results.Sweep):
    for one in sweep.configurations:
        of_one = [row for row in sweep.rows if row["configuration"] == one.number and row["status"] == "complete"]
        losses = [row["loss"] for row in of_one]
        assert one.scores == losses
        if losses:
            assert one.mean == pytest.approx(np.mean(losses), rel=1e-12)
            assert one.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-12)
            assert one.bits_per_byte == pytest.approx(np.mean([row["bits_per_byte"] for row in of_one]), rel=1e-12)
        if len(losses) > 1:
            assert one.spread == pytest.approx(np.std(losses, ddof=1), rel=1e-9)
        else:
            assert one.spread is None


def test_configurations_with_incomplete_seeds_are_ranked_last():
    found = ranked(
        row(0, 0, 3.0),
        row(0, 1, 3.2),
        row(1, 0, 1.0),  # the lowest, but its other seed diverged
        row(1, 1, None, "diverged"),
        row(2, 0, 2.0),
        row(2, 1, 4.0),
        row(3, 0, 0.5, "pruned"),
        row(4, 0, None, "failed"),
        row(5, 0, 2.9),
    )
    assert [one.number for one in found] == [5, 2, 0, 1, 3, 4]
    assert [one.mean for one in found] == pytest.approx([2.9, 3.0, 3.1, 1.0, None, None])


def test_incomplete_lines_are_skipped_and_later_rows_win(tmp_path: Path):
    first, again = row(0, 0, None, "failed"), row(0, 0, 2.0)
    text = "".join(json.dumps(one) + "\n" for one in (first, row(0, 1, 3.0), again))
    (tmp_path / "results.jsonl").write_text(text + '{"configuration": 1, "tri')
    [one] = results.configurations(results.read_rows(tmp_path / "results.jsonl"), [])
    assert one.scores == [2.0, 3.0]


def test_the_page_loads_nothing_and_counts_trials(sweep: results.Sweep, page: Page):
    page.check()
    counts = {status: sum(row["status"] == status for row in sweep.rows) for status in results.STATUSES}
    assert min(counts.values()) > 0
    assert ", ".join(f"{count} {status}" for status, count in counts.items()) in page.text
    assert "42 trials of 14 configurations" in page.text
    assert "<i> (60)" in page.text  # the best one's sample


def test_the_table_is_best_first(sweep: results.Sweep, page: Page):
    heading, *rows = page.tables[0]
    assert heading[:4] == ["#", "learning_rate", "num_layers", "activation"]
    assert [int(cells[0]) for cells in rows] == [one.number for one in sweep.configurations]
    best = sweep.configurations[0]
    assert dict(zip(heading, rows[0], strict=True)) == {
        "#": str(best.number),
        "learning_rate": f"{best.values['optimizer.learning_rate']:.4g}",
        "num_layers": str(best.values["model.num_layers"]),
        "activation": best.values["model.activation"],
        "valid loss": f"{np.mean(best.scores):.4f}",
        "±": f"{np.std(best.scores, ddof=1):.4f}",
        "seeds": "3",
        "perplexity": f"{math.exp(np.mean(best.scores)):.2f}",
        "bits per byte": f"{np.mean(best.scores) / 2:.4f}",
        "incomplete": "",
    }
    lost = {cells[0]: cells[-1] for cells in rows}
    assert lost["5"] == "2 pruned"


def parse(words: list[str]) -> train_cli.Arguments:
    default = train_cli.Arguments(train_cli.load_experiment(words[1]))
    return tyro.cli(train_cli.Arguments, args=words[2:], default=default)


def test_the_command_trains_the_best_configuration(sweep: results.Sweep, page: Page):
    best = sweep.configurations[0]
    line = results.command(sweep, best)
    assert line in page.text
    words = shlex.split(line)
    assert words[:2] == ["./launch.sh", QUICKSTART]
    arguments = parse(words)
    fields = flatten(arguments.experiment)
    assert {name: fields[name] for name in best.values} == best.values
    assert (fields["train.steps"], fields["seed"], arguments.run_dir) == (60, 0, Path("runs/rates-best"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.use_bias", True),
        ("model.tied_embeddings", False),
        ("optimizer.clip_norm", None),
        ("optimizer.clip_norm", 0.5),
        ("sample.prompts", ["a b", ""]),
        ("sample.prompts", ["-x y", "it's"]),
        ("data.files", ["my books/a.txt", "b.txt"]),
        ("data.files", []),
        ("data.archive", "my books.zip"),
        ("data.archive", None),
        ("optimizer.weight_decay", -0.5),
        ("optimizer.learning_rate", 1.2345678901234567e-05),
        ("data.layout", "lines"),
        ("seed", 3),
    ],
)
def test_the_words_of_any_field_parse_to_its_value(field: str, value: Any):
    assert flatten(parse(["train", QUICKSTART, *results.flag_words(field, value)]).experiment)[field] == value
    if isinstance(value, list):  # as a sweep's results have it
        kept = results.flag_words(field, axes.plain(tuple(value)))
        assert flatten(parse(["train", QUICKSTART, *kept]).experiment)[field] == value


def test_a_tuple_given_as_one_string_is_split_like_in_a_shell():
    assert results.flag_words("data.files", "a.txt b.txt") == ["--data.files", "a.txt", "b.txt"]
    assert results.flag_words("data.files", "'my books.txt' it\\'s") == ["--data.files", "my books.txt", "it's"]
    assert results.flag_words("data.files", "it's") == ["--data.files", "it's"]  # of a sweep from before quoting
    assert results.flag_words("tokenizer.file", "my words.txt") == ["--tokenizer.file", "my words.txt"]


def test_objective_against_a_log_axis(sweep: results.Sweep):
    [axes] = axes_plots.against(sweep, sweep.axes[0]).axes
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    rate = "optimizer.learning_rate"
    complete = [one for one in sweep.configurations if one.scores]
    means = lines["mean of a configuration"]
    assert list(means.get_xdata()) == [one.values[rate] for one in complete]
    assert list(means.get_ydata()) == pytest.approx([np.mean(one.scores) for one in complete])
    assert sorted(lines["seed"].get_ydata()) == sorted(row["loss"] for row in sweep.rows if row["status"] == "complete")
    diverged = {row[rate] for row in sweep.rows if row["status"] == "diverged"}
    assert set(lines["diverged"].get_xdata()) == diverged
    best = lines["best configuration"]
    assert list(best.get_ydata()) == pytest.approx([min(np.mean(one.scores) for one in complete)])


def test_categories_are_strips(sweep: results.Sweep):
    axis = sweep.axes[2]
    [axes] = axes_plots.against(sweep, axis).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(axis.values)
    line = next(line for line in axes.lines if line.get_label() == "mean of a configuration")
    complete = [one for one in sweep.configurations if one.scores]
    assert [round(float(x)) for x in np.asarray(line.get_xdata())] == [
        axis.values.index(one.values[axis.field]) for one in complete
    ]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1e-3, 3e-3, 1e-2], True),
        ([1, 2, 4, 8], True),
        ([1, 2, 3], False),
        ([0, 0.1, 0.2], False),
        (["a", "b", "c"], False),
    ],
)
def test_a_list_is_log_where_its_values_multiply(values: list[Any], log: bool):
    assert Axis("x", tuple(values)).log_scale is log


def test_heat_map_of_two_lists(tmp_path: Path):
    fake_sweep.write_sweep(tmp_path / "grid", fake_sweep.GRID, 9)
    grid = results.read(tmp_path / "grid")
    across, up = grid.axes
    figure = axes_plots.heat_map(grid, across, up)
    assert figure is not None
    cells = np.asarray(figure.axes[0].images[0].get_array())
    for one in grid.configurations:
        place = up.values.index(one.values[up.field]), across.values.index(one.values[across.field])
        assert cells[place] == one.mean
    parsed = Page(report.sweep(tmp_path / "grid"))
    parsed.check()
    assert "valid loss over model.num_layers and optimizer.b2" in parsed.source
    assert axes_plots.heat_map(grid, across, Axis("x", low=0.0, high=1.0)) is None


RATE_GRID = [{"field": "optimizer.learning_rate", "values": [1e-3, 3e-3, 1e-2]}, fake_sweep.GRID[0]]


def test_a_curve_over_the_rates_for_each_value_of_another_axis(tmp_path: Path):
    fake_sweep.write_sweep(tmp_path / "grid", RATE_GRID, 9)
    grid = results.read(tmp_path / "grid")
    figure = axes_plots.by_rate(grid, *grid.axes)
    assert figure is not None
    [axes] = figure.axes
    means = {tuple(one.values.values()): one.mean for one in grid.configurations}
    assert axes.get_xscale() == "log"
    named, best = axes.lines[::2], axes.lines[1::2]
    assert [line.get_label() for line in named] == ["1", "2", "4"]
    for layers, line, mark in zip((1, 2, 4), named, best, strict=True):
        rates, losses = np.asarray(line.get_data())
        assert np.asarray(mark.get_data()).tolist() == [[rates[losses.argmin()]], [losses.min()]]
        assert mark.get_markersize() > line.get_markersize()
        assert list(line.get_xdata()) == [1e-3, 3e-3, 1e-2]
        assert list(line.get_ydata()) == [means[rate, layers] for rate in (1e-3, 3e-3, 1e-2)]
    parsed = Page(report.sweep(tmp_path / "grid"))
    parsed.check()
    assert "valid loss against optimizer.learning_rate for each model.num_layers" in parsed.source


def test_the_best_of_further_axes_is_on_the_curve(sweep: results.Sweep):
    rate, layers, _ = sweep.axes
    figure = axes_plots.by_rate(sweep, rate, layers)
    assert figure is not None
    best = sweep.best
    assert best is not None
    points = [point for line in figure.axes[0].lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert (best.values[rate.field], best.mean) in points
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"None"}
    assert axes_plots.by_rate(sweep, layers, rate) is None  # too many rates for colours


def test_curves_of_all_trials_with_the_best_on_top(folder: Path, sweep: results.Sweep):
    read = {row["trial"]: runs.read(folder / row["run_dir"]) for row in sweep.rows if row["status"] != "failed"}
    drawn = sweep_page.trial_curves(sweep, read, "valid")
    assert len(drawn) == len(read)
    best = {row["trial"] for row in sweep.configurations[0].rows}
    assert {curve.run.name for curve in drawn[-3:]} == best
    assert {curve.label for curve in drawn[-3:]} == {f"configuration {sweep.configurations[0].number}"}
    assert {curve.run.name for curve in drawn if curve.diverged} == {
        row["trial"] for row in sweep.rows if row["status"] == "diverged"
    }
    [axes] = curves.plot(drawn, "step", "loss").axes
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == sweep.counts["diverged"]
    assert {float(np.asarray(line.get_xdata())[0]) for line in crosses} == {50}  # the last step whose loss was a number
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        f"configuration {one.number}" for one in sweep.configurations[:3]
    ]


def test_many_grey_curves_are_rasterised(folder: Path):
    run = runs.read(folder / "trials" / "0000-seed0")
    crowd = [curves.Curve(run, "valid")] * curves.RASTER_FROM
    text = style.inline(style.svg(curves.plot(crowd, "step", "loss")), "crowd", "loss")
    assert text.count("data:image/png") == 1
    assert "data:image/png" not in style.svg(curves.plot(crowd[1:], "step", "loss"))


@pytest.mark.parametrize("keep", ["nothing", "what diverged", "no run directories"])
def test_a_sweep_without_complete_trials_has_a_report(folder: Path, tmp_path: Path, keep: str):
    copy = shutil.copytree(folder, tmp_path / "rates")
    if keep == "nothing":
        (copy / "results.jsonl").unlink()
    elif keep == "what diverged":
        lines = [line for line in (copy / "results.jsonl").read_text().splitlines() if '"diverged"' in line]
        (copy / "results.jsonl").write_text("\n".join(lines[:1]))
    else:
        shutil.rmtree(copy / "trials")
    parsed = Page(report.sweep(copy))
    parsed.check()
    assert ("No trial is complete yet" in parsed.text) == (keep != "no run directories")


def test_a_best_configuration_at_the_edge_of_an_axis_gives_a_warning():
    rows = [row(i, 0, 3.0 - 0.1 * i, x=float(i)) for i in range(4)]
    about = results.Sweep(Path(), "s", "f.py", (Axis("x", low=0, high=9),), (), "", "", tuple(rows))
    assert sweep_page.at_the_edge(about, about.configurations[0]) == ["x"]
    assert sweep_page.at_the_edge(about, about.configurations[1]) == []


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture):
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "learning_rate" in said
    assert said.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.md").read_text().count("\n| ") >= 14


def test_wrong_arguments_are_refused_in_one_line(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"has no sweep\.json"):
        report.sweep(tmp_path)
    with pytest.raises(UserError, match="one folder holds one report, but these paths give 2"):
        report.report([folder, folder / "trials" / "0000-seed0"], tmp_path / "out")
    for text in ('{"axes"', "[]", "{}", '{"axes": [{"values": [1]}]}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match=r"sweep\.json is damaged"):
            report.sweep(tmp_path)


def test_the_seed_is_not_an_axis(tmp_path: Path):
    (tmp_path / "sweep.json").write_text(json.dumps({"axes": [{"field": "seed", "values": [0, 1]}]}))
    assert results.read(tmp_path).axes == ()
