"""Which runs a report compares and by what, and what it makes of folders, links and damage."""

import json
import math
import os
from pathlib import Path

import fake_sweep
import numpy as np
import pytest
from pages import Page
from tiny_experiment import changed

from minigpt_jax import display, report
from minigpt_jax.cli import main
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.report import curves, page, run_page, runs


def best_rows(parsed: Page) -> list[str]:
    """The names of the runs that the summary sets off."""
    rows = [attributes.get("class") for tag, attributes in parsed.tags if tag == "tr"]
    return [cells[0] for cells, kind in zip(parsed.tables[0], rows, strict=False) if kind == "best"]


def test_runs_of_different_tokenizers_are_ranked_by_bits_per_byte(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "short", final=3.0, tokenizer="t0")
    fake_sweep.write_run(tmp_path / "long", final=4.0, tokenizer="t1", bytes_per_token=6.0)
    [written] = report.report([tmp_path / "short", tmp_path / "long"], tmp_path / "out")
    parsed = Page(written.html)
    assert best_rows(parsed) == ["long"]
    assert "differ in tokenizer" in parsed.text
    assert "ranked by bits per byte" in parsed.text
    assert "Validation bits per byte by step" in parsed.text
    assert "Validation loss by step" not in parsed.text


def test_runs_on_different_corpora_are_not_ranked(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "a", final=3.0)
    fake_sweep.write_run(tmp_path / "b", final=4.0, corpus="c1", tokenizer="t1")
    [written] = report.report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    parsed = Page(written.html)
    assert best_rows(parsed) == []
    assert "differ in corpus and tokenizer: figures of different texts cannot be compared" in parsed.text


def test_different_cuts_of_the_same_corpus_give_a_caveat(tmp_path: Path):
    experiment = fake_sweep.EXPERIMENT
    fake_sweep.write_run(tmp_path / "a", experiment)
    fake_sweep.write_run(tmp_path / "b", changed("data", experiment, evaluation_layout="lines"))
    found = run_page.comparability(runs.read_all([tmp_path / "a", tmp_path / "b"]))
    assert ["different parts of the texts" in one.text for one in found if isinstance(one, page.Text)] == [True]


@pytest.mark.parametrize("damaged", [False, True])
def test_the_floor_is_drawn_where_it_is_known(tmp_path: Path, damaged: bool):
    files = fake_sweep.write_run(tmp_path / "r", final=4.0)
    sizes, lengths = np.full(4, 20, np.int32), np.full(4, 9, np.int32)
    rows = Rows(np.ones((4, 9), np.uint16), sizes, lengths, floor=80 * math.log(2))  # 1 bit per byte
    files.rows("valid").parent.mkdir(parents=True)
    rows.save(files.rows("valid"))
    if damaged:
        files.rows("valid").write_bytes(files.rows("valid").read_bytes()[:100])
    run = runs.read(tmp_path / "r")
    assert run.floor("bits_per_byte") == (None if damaged else pytest.approx(1.0))
    assert run.floor("loss") == (None if damaged else pytest.approx(2.0))
    [written] = report.report([tmp_path / "r"])
    assert Page(written.html).text.count("entropy of the text") == (0 if damaged else 3)


def test_the_floor_is_drawn_for_runs_of_one_text(tmp_path: Path):
    rows = Rows(np.ones((4, 9), np.uint16), np.full(4, 20, np.int32), floor=80 * math.log(2))
    for name, bytes_per_token in (("a", 4.0), ("b", 4.000000001)):  # the ratio of a run's figures is rounded
        files = fake_sweep.write_run(tmp_path / name, bytes_per_token=bytes_per_token)
        files.rows("valid").parent.mkdir(parents=True)
        rows.save(files.rows("valid"))
    read = runs.read_all([tmp_path / "a", tmp_path / "b"])
    assert read[0].floor("loss") != read[1].floor("loss")
    [written] = report.report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert Page(written.html).text.count("entropy of the text") == 6


def test_learning_rate_and_gradient_norm(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "r")
    parsed = Page(report.report([tmp_path / "r"])[0].html)
    assert "Learning rate by step" in parsed.text
    assert "Gradient norm by step" in parsed.text
    run = runs.read(tmp_path / "r")
    [axes] = curves.plot([curves.Curve(run, "train", "r")], "step", "Learning rate", "learning_rate").axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([5e-3 * i for i in range(1, 13)])
    assert axes.get_yscale() == "linear"


def test_a_folder_of_runs_is_the_runs_in_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a", "b", "damaged"):
        fake_sweep.write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "damaged" / "config.json").write_text("{")
    (tmp_path / "runs" / "empty").mkdir()
    fake_sweep.write_sweep(tmp_path / "runs" / "rates", fake_sweep.GRID, 2)
    assert [one.title for one in report.report([tmp_path / "runs"])] == ["2 runs", "Sweep rates"]
    assert "left out of the report" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a run directory"):
        report.report([tmp_path / "runs" / "empty"])


def test_a_home_folder_and_a_linked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fake_sweep.write_run(tmp_path / "there" / "r")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "r")
    [written] = report.report(["~/link"], "~/out")
    assert written.html == tmp_path / "out" / "report.html"
    assert written.title == "Run r"
    [written] = report.report(["~/link"])
    assert (tmp_path / "there" / "r" / "report.html").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/step-00000010.txt", "samples/compare.json", "data"])
def test_nothing_is_read_through_a_link_that_leads_out(tmp_path: Path, name: str):
    files = fake_sweep.write_run(tmp_path / "r")
    (tmp_path / "secret").write_text("hunter2")
    path = files.path / name
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="outside of"):
        report.report([tmp_path / "r"])
    assert not (files.path / "report.html").exists()


def test_a_sweeps_row_cannot_name_a_run_elsewhere(tmp_path: Path):
    rows = fake_sweep.write_sweep(tmp_path / "s", fake_sweep.GRID, 2)
    fake_sweep.write_run(tmp_path / "elsewhere", samples="hunter2")
    text = "".join(json.dumps(row | {"run_dir": "../elsewhere"}) + "\n" for row in rows)
    (tmp_path / "s" / "results.jsonl").write_text(text)
    assert "hunter2" not in report.sweep(tmp_path / "s").read_text()


def test_what_a_link_stands_for_is_not_written_over(tmp_path: Path):
    fake_sweep.write_run(tmp_path / "r")
    (tmp_path / "precious").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.html", "report.html.partial", "report.md.partial"):
        (out / name).symlink_to(tmp_path / "precious")
    report.report([tmp_path / "r"], out)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_sweep.write_run(tmp_path / "r")

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(page, "write_atomic", refuse)
    with pytest.raises(UserError, match="give another folder for the report with --output"):
        report.report([tmp_path / "r"])


WILD = "a[bold]b[x] \x1b[31m\x07:smile:"


def test_a_terminal_gets_text_and_no_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    fake_sweep.write_run(tmp_path / WILD, samples=WILD)
    fake_sweep.write_run(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert main(["report", WILD, "b"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count("a[bold]b[x] \\x1b[31m\\x07:smile:") == 2  # the line above and the table
    assert "\x1b" not in Path("runs/report/report.md").read_text()


def test_printable():
    assert display.printable("é\n\ta\x1b[0m\x9b\x7f\ud800\r") == "é\n\ta\\x1b[0m\\x9b\\x7f\\ud800\\r"


DAMAGE = {
    "config.json": ["[]", '{"experiment": 5}', '{"experiment": {"name": 3, "model": []}}', "\x00\xff", ""],
    "metrics.jsonl": [
        '{"step": 5, "split": ["a"], "loss": 1}\n',
        '{"step": 5, "split": "valid", "loss": "x", "seconds": {}, "perplexity": [], "tokens": "t"}\n',
        '{"step": 1' + "0" * 400 + ', "split": "valid", "loss": 1}\n',
        "[[]]\n\x00\n\xff",
        '{"step": 5, "split": "valid", "loss": NaN}\n{"step": 9, "split": "train", "loss": -Infinity}\n',
    ],
    "samples/compare.json": [
        '{"rows": 5}',
        "5",
        '{"rows": [5, {"text": [], "settings": 7, "mean_logprob": "x"}]}',
        "[",
    ],
    "samples/step-00000010.txt": ["\x00\x1b[2J", ""],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_damaged_files_of_a_run_give_a_report_or_one_line(tmp_path: Path, name: str, text: str):
    files = fake_sweep.write_run(tmp_path / "r")
    (files.path / name).write_text(text, encoding="latin-1")
    if name == "config.json":
        with pytest.raises(UserError, match=r"config\.json"):
            report.report([files.path])
    else:
        Page(report.report([files.path])[0].html).check()


ROW = {"configuration": 0, "trial": "0000-seed0", "seed": 0, "model.num_layers": 1, "optimizer.b2": 0.9}
COMPLETE = {**ROW, "status": "complete", "loss": 3.0, "step": 1}
DAMAGED_SWEEPS = [
    ("sweep.json", '{"axes": [{"field": 3, "values": [1]}]}'),
    ("sweep.json", '{"axes": [{"field": "model.width", "values": [[1], {}]}]}'),
    ("sweep.json", '{"axes": [{"field": "model.width", "low": "a", "high": 3}]}'),
    ("sweep.json", '{"axes": [{"field": "model.width"}]}'),
    ("sweep.json", '{"axes": [], "flags": 5, "name": ["\\ud800"], "caveats": {}}'),
    *(
        ("results.jsonl", json.dumps(COMPLETE | change) + "\n")
        for change in (
            {"trial": ["x"]},
            {"loss": "x"},
            {"status": ["x"]},
            {"model.num_layers": None},
            {"optimizer.b2": {}},
            {"run_dir": 5},
            {"seed": {}},
            {"perplexity": "x", "bits_per_byte": []},
            {"configuration": 10**400},
            {"run_dir": "a\x00b"},
        )
    ),
]


@pytest.mark.parametrize(("name", "text"), DAMAGED_SWEEPS)
def test_damaged_files_of_a_sweep_give_a_report_or_one_line(tmp_path: Path, name: str, text: str):
    fake_sweep.write_sweep(tmp_path / "s", fake_sweep.GRID, 3)
    (tmp_path / "s" / name).write_text(text)
    if name == "sweep.json" and "flags" not in text:
        with pytest.raises(UserError, match=r"sweep\.json is damaged"):
            report.sweep(tmp_path / "s")
    else:
        Page(report.sweep(tmp_path / "s")).check()


@pytest.mark.parametrize("place", ["metrics.jsonl", "samples/compare.json", "samples/step-00000010.txt"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, place: str):
    files = fake_sweep.write_run(tmp_path / "r")
    path = files.path / place
    path.unlink(missing_ok=True)
    os.mkdir(path)
    if place == "metrics.jsonl":
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
            report.report([files.path])
    else:
        Page(report.report([files.path])[0].html).check()
