"""The command `minigpt evaluate`: its figures, as JSON that every reader takes."""

import json
from pathlib import Path

import pytest
import tiny_experiment
from test_cli import command, json_lines

from minigpt_jax import corpora
from minigpt_jax.train import evaluate
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.trial.run import run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    run(tiny_experiment.changed("train", steps=4), path)
    return path


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluate_json(run_dir: Path, capsys: pytest.CaptureFixture, split: str):
    assert command("evaluate", run_dir, "--split", split, "--json") == 0
    [figures] = json_lines(capsys.readouterr().out)
    assert {"split", "loss", "perplexity", "bits_per_byte", "tokens", "step"} <= set(figures)
    assert (figures["split"], figures["step"]) == (split, 4)
    assert figures["floor_bits_per_byte"] < figures["bits_per_byte"]


def test_a_batch_of_evaluate_has_no_more_rows_than_there_are(run_dir: Path, capsys: pytest.CaptureFixture):
    figures = []
    for size in (64, 10**12):
        assert command("evaluate", run_dir, "--batch-size", size, "--json") == 0
        figures += json_lines(capsys.readouterr().out)
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)
    assert figures[1]["tokens"] == figures[0]["tokens"]


@pytest.mark.parametrize("nats", [float("nan"), float("inf")])
def test_evaluate_writes_null_for_what_json_lacks(run_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch, nats: float):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: LossSums(nats, 3, 5))
    assert command("evaluate", run_dir, "--json") == 0
    figures = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert figures["loss"] is figures["perplexity"] is figures["bits_per_byte"] is None
    assert figures["tokens"] == 3


def test_evaluate_a_file_of_the_validation_texts_is_evaluating_validation(run_dir: Path, tmp_path: Path, capsys):
    experiment = tiny_experiment.EXPERIMENT
    texts = corpora.open_corpus(experiment.data, tmp_path).documents("valid")
    (tmp_path / "valid.txt").write_text("".join(f"{text}\n" for text in texts))
    figures = []
    for flags in (["--split", "valid"], ["--files", tmp_path / "valid.txt"]):
        assert command("evaluate", run_dir, *flags, "--json") == 0
        figures += json_lines(capsys.readouterr().out)
    for name in ("loss", "perplexity", "bits_per_byte", "tokens", "step"):
        assert figures[1][name] == figures[0][name]
