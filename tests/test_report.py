"""Reports of runs: what the page says and draws, against the run directories that it was made from."""

import json
import math
import shutil
from pathlib import Path

import fake_sweep
import pytest
import tiny_experiment
from pages import Page

from minigpt_jax import report
from minigpt_jax.cli import main
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.report import curves, run_page, runs, style

WILD = "<script>alert('x')</script> & `tick` | **bold** $x_1$\n```\n</details>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, of which `wide` is the best and `_wi<ld>$` has a tokenizer of its own."""
    path = tmp_path_factory.mktemp("runs")
    fake_sweep.write_run(path / "base", final=4.0)
    fake_sweep.write_run(
        path / "wide", tiny_experiment.changed("model", fake_sweep.EXPERIMENT, width=32), final=3.5, points=4
    )
    other = tiny_experiment.changed("optimizer", fake_sweep.EXPERIMENT, learning_rate=0.5)
    fake_sweep.write_run(path / "_wi<ld>$", other, final=4.5, samples=WILD, tokenizer="t1")
    return path


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    [written] = report.report([folder / "base", folder / "wide", folder / "_wi<ld>$"], tmp_path_factory.mktemp("out"))
    return Page(written.html)


def command(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # the flag parser's way
        return int(stop.code or 0)


def test_a_page_loads_nothing_and_shows_text_as_it_is(page: Page):
    page.check()
    assert WILD.splitlines()[0] in page.text


def test_every_run_is_in_the_summary_and_in_the_legends(page: Page):
    assert [row[0] for row in page.tables[0]] == ["run", "base", "wide", "_wi<ld>$"]
    legends = [line for line in page.text.splitlines() if line.strip() == "_wi<ld>$"]
    assert len(legends) == page.source.count("<figure>") == 8


def test_summary_figures_equal_those_of_metrics_jsonl(page: Page):
    heading, base, wide, _ = page.tables[0]
    said = dict(zip(heading, wide, strict=True))
    assert said["best loss"] == said["final loss"] == "3.5000"
    assert said["train loss"] == "3.5500"
    assert said["perplexity"] == f"{math.exp(3.5):.2f}"
    assert said["bits per byte"] == "1.7500"
    assert said["step"] == "40 of 60"
    assert said["tokens"] == f"{512 * 40:,}"
    assert said["time"] == "10.0 s"
    assert int(said["parameters"].replace(",", "")) > int(base[1].replace(",", ""))
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "tr"][:4] == [None, None, "best", None]


def test_best_is_not_the_final_where_the_loss_rose(tmp_path: Path):
    files = fake_sweep.write_run(tmp_path / "r", final=4.0)
    with files.metrics.open("a") as file:
        file.write(json.dumps({"step": 70, "split": "valid", "loss": 5.0, "perplexity": math.exp(5.0)}) + "\n")
    run = runs.read(tmp_path / "r")
    assert run.best is not None
    assert run.final is not None
    assert (run.best["step"], run.best["loss"], run.final["loss"]) == (60, 4.0, 5.0)


def test_the_table_has_the_fields_that_differ(folder: Path, page: Page):
    assert page.tables[1] == [
        ["field", "base", "wide", "_wi<ld>$"],
        ["model.width", "16", "32", "16"],
        ["optimizer.learning_rate", "0.01", "0.01", "0.5"],
    ]
    alone = runs.differing_fields([runs.read(folder / "base")])
    assert alone["model.width"] == [16]
    assert "optimizer.b1" not in alone  # the default


def test_runs_with_different_tokens_give_a_warning(folder: Path, page: Page):
    assert "differ in tokenizer" in page.text
    same = [runs.read(folder / name) for name in ("base", "wide")]
    assert run_page.comparability(same) == []


def test_parameters_of_the_reference(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "r", Experiment(name="reference"))
    assert runs.read(tmp_path / "r").parameters == 3_255_938


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("x", ["step", "tokens", "seconds"])
def test_curves_have_the_lines_data(folder: Path, split: str, x: str):
    read = runs.read_all([folder / "base", folder / "wide"])
    [axes] = curves.plot(curves.of_runs(read, split), x, "loss").axes
    for name, line in zip(("base", "wide"), axes.lines, strict=True):
        lines = [json.loads(text) for text in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert list(line.get_xdata()) == [one[x] for one in lines if one["split"] == split]
        assert list(line.get_ydata()) == [one["loss"] for one in lines if one["split"] == split]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["base", "wide"]


def test_long_training_is_drawn_in_hours(tmp_path: Path):
    files = fake_sweep.write_run(tmp_path / "r")
    lines = [
        json.loads(text) | {"seconds": 3600.0 * i} for i, text in enumerate(files.metrics.read_text().splitlines())
    ]
    files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [axes] = curves.plot(curves.of_splits(runs.read(tmp_path / "r")), "seconds", "loss").axes
    assert axes.get_xlabel() == "hours of training"
    assert max(axes.lines[0].get_xdata()) == len(lines) - 1


def test_the_last_evaluation_is_not_cut_by_the_edge(tmp_path: Path):
    """Autoscaling leaves hardly any margin if the only evaluations of all runs are at about the same step."""
    for step in (1000, 1001):
        line = {"step": step, "split": "valid", "loss": 3.0}
        fake_sweep.write_run(tmp_path / str(step)).metrics.write_text(json.dumps(line) + "\n")
    read = runs.read_all(sorted(tmp_path.iterdir()))
    [axes] = curves.plot(curves.of_runs(read, "valid"), "step", "loss").axes
    assert axes.get_xlim()[1] > 1.02 * 1001


def test_of_many_runs_the_best_have_the_colours(tmp_path: Path):
    for i in range(len(style.SERIES) + 2):
        fake_sweep.write_run(tmp_path / f"r{i}", final=5.0 - 0.1 * i)
    read = runs.read_all(sorted(tmp_path.iterdir()))
    drawn = curves.of_runs(read, "valid")
    assert [curve.label for curve in drawn[:3]] == [None, None, "r2"]
    assert len({curve.series for curve in drawn[2:]}) == len(style.SERIES)
    said = run_page.configurations(read)[1]
    assert said == [run_page.Text("The runs have the same configuration.")]


def test_outliers_do_not_squash_the_loss_axis(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "good", final=3.0, points=50)
    files = fake_sweep.write_run(tmp_path / "wild", final=3.0, points=50)
    with files.metrics.open("a") as file:
        file.write(json.dumps({"step": 999, "split": "valid", "loss": 1e6}) + "\n")
    [axes] = curves.plot(curves.of_runs(runs.read_all([tmp_path / "good"]), "valid"), "step", "loss").axes
    usual = axes.get_ylim()
    crowd = [curves.Curve(run, "valid") for run in runs.read_all([tmp_path / "good", tmp_path / "wild"])]
    [axes] = curves.plot(crowd, "step", "loss").axes
    assert axes.get_ylim()[1] < 1.3 * usual[1]


@pytest.mark.parametrize("label", [None, "r"])
def test_a_single_evaluation_is_seen_in_a_crowd(tmp_path: Path, label: str | None):
    """A line through one point has no length."""
    for points in (1, 2):
        fake_sweep.write_run(tmp_path / str(points), points=points)
    drawn = [curves.Curve(runs.read(tmp_path / name), "valid", own) for name, own in [("1", label), ("2", None)]]
    [axes] = curves.plot(drawn, "step", "loss").axes
    alone, several = axes.lines
    assert len(alone.get_xdata()) == 1
    assert alone.get_marker() not in ("", "None")
    assert several.get_marker() in ("", "None")


@pytest.mark.parametrize(
    "text", ["", None, '{"step": 5, "split": "train", "loss": 5.0', '{"step": 5, "split": "valid", "loss": null}\n']
)
def test_a_run_without_metrics_has_a_report(tmp_path: Path, text: str | None):
    files = fake_sweep.write_run(tmp_path / "r")
    shutil.rmtree(files.samples)
    files.metrics.unlink() if text is None else files.metrics.write_text(text)
    [written] = report.report([tmp_path / "r"])
    parsed = Page(written.html)
    parsed.check()
    assert "nothing measured yet" in parsed.text


def test_a_cut_last_line_is_left_out(tmp_path: Path):
    files = fake_sweep.write_run(tmp_path / "r")
    before = runs.read(tmp_path / "r").lines
    with files.metrics.open("a") as file:
        file.write('{"step": 70, "split": "tra')
    assert runs.read(tmp_path / "r").lines == before


def test_samples_by_evaluation(page: Page):
    titles = [attributes for tag, attributes in page.tags if tag == "details"]
    assert len(titles) == 6 + 4 + 6
    assert sum("open" in attributes for attributes in titles) == 3
    assert "wide · step 40 · validation loss 3.5000" in page.text
    assert "once upon a time (40)\n\nthe end" in page.text


def test_samplers_compared(tmp_path: Path):
    files = fake_sweep.write_run(tmp_path / "r")
    row = {"sampler": "top_k", "settings": {"k": 10, "temperature": 0.8}, "text": "<b>a</b>"}
    row |= {"repeated_4grams": 0.25, "distinct_2": 0.5, "mean_logprob": -1.25, "tokens_per_second": 1234.6}
    saved = {"prompt": "once <a>", "seed": 7, "step": 60, "rows": [row]}
    (files.samples / "compare.json").write_text(json.dumps(saved))
    [written] = report.report([tmp_path / "r"])
    parsed = Page(written.html)
    assert parsed.tables[-1][1] == ["top_k", "k=10, temperature=0.8", "<b>a</b>", "0.250", "0.500", "-1.250", "1,235"]
    assert "Prompt: 'once <a>' · seed 7 · step 60" in parsed.text
    (files.samples / "compare.json").write_text('{"rows": [{"sam')
    [written] = report.report([tmp_path / "r"])
    assert "compare.json cannot be read" in Page(written.html).text


def test_markdown_escapes_and_has_its_plots(folder: Path, tmp_path: Path):
    [written] = report.report([folder / "base", folder / "_wi<ld>$"], tmp_path / "out")
    text = written.html.with_name("report.md").read_text()
    assert "| \\_wi&lt;ld&gt;$ |" in text
    assert "````text\n" + WILD in text  # the fence is longer than the one in the sample
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "out" / line.split("(")[1].rstrip(")")).read_text().startswith("<?xml")


def test_links_lead_to_the_files(folder: Path, tmp_path: Path, page: Page):
    [written] = report.report([folder / "wide"], tmp_path / "a" / "b")
    links = [attributes["href"] or "" for tag, attributes in Page(written.html).tags if tag == "a"]
    assert len(links) == 3
    assert all((written.html.parent / link).resolve().exists() for link in links)
    assert any("%3C" in (attributes["href"] or "") for tag, attributes in page.tags if tag == "a")


def test_names_tell_runs_apart():
    assert runs.names([Path("a/x"), Path("b/x"), Path("b/y")]) == ["a/x", "b/x", "b/y"]
    assert runs.names([Path("a/x"), Path("b/y")]) == ["x", "y"]


def test_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "base", tmp_path / "base")
    assert command("report", "base") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "base/report.html"
    assert (tmp_path / "base" / "report.html").exists()
    assert (tmp_path / "base" / "report.md").exists()
    assert command("report", "base", folder / "wide", "base") == 0  # one of them twice
    said = capsys.readouterr().out
    assert "4.0000" in said
    assert "3.5000" in said
    assert said.splitlines()[-1] == "runs/report/report.html"
    assert command("report", "--help") == 0
    assert "sweep" in capsys.readouterr().out
    assert command("report", "base", folder / "wide", "--output", "there") == 0
    assert (tmp_path / "there" / "report.html").exists()


def test_a_folder_of_runs_stands_for_its_runs_and_sweeps(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "runs" / "plain")
    fake_sweep.write_sweep(tmp_path / "runs" / "sweeps" / "rates")
    assert sorted(one.html.parent.name for one in report.report([tmp_path / "runs"])) == ["plain", "rates"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere is not a run directory: there is no such folder"),
        (["{run}", "{run}/samples"], "samples is not a run directory: it holds no config.json"),
        (["{run}/metrics.jsonl"], "it is a file"),
        (["{run}", "--output", "{run}/config.json"], "config.json is a file; name another folder"),
        ([], "needs a run directory"),
    ],
)
def test_wrong_paths_are_refused(folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], says: str):
    assert command("report", *(argument.format(run=folder / "base") for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (folder / "base" / "report.html").exists()


def test_a_report_without_runs_is_refused():
    with pytest.raises(UserError, match="give one or more"):
        report.report([])
