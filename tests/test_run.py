"""Whole runs, from corpus to checkpoint, of an experiment that is small enough to run many times."""

import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax import generate
from minigpt_jax.config import Experiment
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir, lock, read_metrics
from minigpt_jax.train import evaluate
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress
from minigpt_jax.trial import environment, open_run
from minigpt_jax.trial.run import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of all steps."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert not run(EXPERIMENT, path).interrupted
    return path


def figures(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the figures that depend on the clock."""
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(RunDir(run_dir))]


def weights(run_dir: Path, step: int | None = None) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(generate.load(run_dir, step).weights)]


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    for sample in (one / "samples").iterdir():
        assert sample.read_text() == (other / "samples" / sample.name).read_text()


def test_patience_ends_a_run_and_keeps_the_best_weights(tmp_path: Path):
    """Also if no checkpoint was due at the step of the lowest loss."""
    rising = changed(
        "optimizer", changed("train", evaluate_every=1, checkpoint_every=100, patience=2), learning_rate=1.0
    )
    result = run(rising, tmp_path)
    losses = {line["step"]: line["loss"] for line in figures(tmp_path) if line["split"] == "valid"}
    best = min(losses, key=losses.__getitem__)
    assert (result.best_step, result.progress.step) == (best, best + 2)
    assert best + 2 < 12  # the steps of the experiment
    assert generate.load(tmp_path, "best").step == best
    again = run(rising, tmp_path)
    assert (again.best_step, again.progress.step) == (best, best + 2)


def test_a_run_directory_has_all_documented_files(whole: Path):
    assert {path.name for path in whole.iterdir()} >= {
        "config.json",
        "tokenizer",
        "checkpoints",
        "metrics.jsonl",
        "samples",
    }
    config = json.loads((whole / "config.json").read_text())
    assert config["experiment"]["model"]["width"] == 16
    assert set(config["fingerprints"]) == {"corpus", "tokenizer"}
    assert "jax" in config["versions"]
    lines = read_metrics(RunDir(whole))
    assert [(line["step"], line["split"]) for line in lines] == [
        (5, "train"),
        (6, "valid"),
        (10, "train"),
        (12, "train"),
        (12, "valid"),
    ]
    for line in lines:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["bits_per_byte"] > 0
    assert 12 * 16 * 32 - 32 < lines[-1]["tokens"] <= 12 * 16 * 32  # one row of the corpus is not full
    assert lines[-1]["seconds"] > 0
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["step-00000006.txt", "step-00000012.txt"]
    assert (whole / "samples" / "step-00000012.txt").read_text().startswith("once upon a time")


def test_training_lowers_the_loss(whole: Path):
    valid = [line["loss"] for line in read_metrics(RunDir(whole)) if line["split"] == "valid"]
    assert valid[-1] < valid[0] < math.log(300)


def test_evaluation_needs_only_the_run_directory(whole: Path):
    lm = generate.load(whole)
    rows = Rows.load(RunDir(whole).rows("valid"))
    last = read_metrics(RunDir(whole))[-1]
    for batch_size in (8, 24):
        sums = evaluate.evaluate(lm.model, lm.weights, rows, batch_size)
        assert sums.loss == pytest.approx(last["loss"], rel=1e-6)
        assert sums.bits_per_byte == pytest.approx(last["bits_per_byte"], rel=1e-6)
    assert rows.floor_bits_per_byte is not None
    assert sums.bits_per_byte > rows.floor_bits_per_byte


def test_the_training_loss_is_the_mean_since_the_previous_line(tmp_path: Path, whole: Path):
    run(changed("train", log_every=1), tmp_path / "each")
    each = [line for line in read_metrics(RunDir(tmp_path / "each")) if line["split"] == "train"]
    lines = [line for line in read_metrics(RunDir(whole)) if line["split"] == "train"]
    counts = np.diff([0, *(step["tokens"] for step in each)])
    losses = np.array([step["loss"] for step in each])
    for line, part in zip(lines, (slice(0, 5), slice(5, 10), slice(10, 12)), strict=True):
        assert line["loss"] == pytest.approx(np.average(losses[part], weights=counts[part]), rel=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one_exactly(tmp_path: Path, whole: Path):
    path = tmp_path / "run"
    run(changed("train", checkpoint_every=4, steps=8), path)
    assert Checkpoints(path / "checkpoints", read_only=True).latest == 8
    # As after a crash: the latest checkpoint is missing, and metrics.jsonl has later lines and an incomplete last one.
    shutil.rmtree(path / "checkpoints" / "8")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    (path / "samples" / "step-00000008.txt").unlink()
    run(EXPERIMENT, path)
    assert_same_run(path, whole)


def test_a_run_may_end_at_the_step_where_it_was_interrupted(tmp_path: Path):
    """It evaluates and samples there, as at its end, and the checkpoint gets the loss."""
    path = tmp_path / "run"
    run(changed("train", checkpoint_every=4), path)
    shutil.rmtree(path / "checkpoints" / "12")  # the run may as well have been stopped after step 8
    result = run(changed("train", checkpoint_every=4, steps=8), path)
    assert not result.interrupted
    lines = [line for line in read_metrics(RunDir(path)) if line["split"] == "valid"]
    assert [line["step"] for line in lines] == [6, 8]
    assert (path / "samples" / "step-00000008.txt").exists()
    assert Checkpoints(path / "checkpoints", read_only=True)._loss(8) == lines[-1]["loss"]


def test_the_time_since_the_last_line_is_kept():
    progress = Progress()
    for _ in range(2):
        progress.count(LossSums(tokens=5), 3.0)
        progress = Progress.from_json(progress.to_json())
    assert (progress.seconds, progress.seconds_since_log, progress.since_log.tokens) == (6.0, 6.0, 10)
    earlier = progress.to_json()
    del earlier["seconds_since_log"]
    assert Progress.from_json(earlier).seconds_since_log == 0


def test_a_run_of_whole_documents_resumes(tmp_path: Path):
    """Its rows are padded, so that it counts fewer tokens than they have, and its floor is known."""
    experiment = changed("data", layout="whole", sequence_length=160)
    run(experiment, tmp_path / "run")
    run(changed("train", experiment, steps=6), tmp_path / "resumed")
    run(experiment, tmp_path / "resumed")
    for one, other in zip(weights(tmp_path / "run"), weights(tmp_path / "resumed"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 0 < figures(tmp_path / "run")[-1]["tokens"] < 12 * 16 * 160
    assert Rows.load(tmp_path / "run" / "data" / "valid.npz").floor is not None


@pytest.mark.parametrize(("layout", "stops"), [("lines", False), ("packed", True), ("whole", True)])
def test_samples_end_with_their_text_unless_rows_are_prefixes(whole: Path, layout: str, stops: bool):
    lm = generate.load(whole)
    asked: dict[str, Any] = {}
    lm.generate = lambda *_, **settings: asked.update(settings) or []
    open_run.sample(changed("data", layout=layout), lm)
    assert asked["stop"] == (lm.end_ids if stops else [])


@pytest.mark.parametrize("steps_per_execution", [4, 5])
def test_results_are_independent_of_steps_per_execution(tmp_path: Path, whole: Path, steps_per_execution: int):
    run(changed("train", steps_per_execution=steps_per_execution), tmp_path / "run")
    ours, theirs = figures(tmp_path / "run"), figures(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_finished_run_is_not_changed(whole: Path):
    before = (whole / "metrics.jsonl").read_text()
    result = run(EXPERIMENT, whole)
    assert (result.progress.step, result.interrupted) == (12, False)
    assert (whole / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("experiment", "difference"),
    [
        (changed("model", width=32), "--model.width is 32 here and 16 there"),
        (changed("data", stories=210), "--data.stories is 210 here and 200 there"),
        (changed("optimizer", learning_rate=0.5), "--optimizer.learning-rate"),
    ],
)
def test_the_run_directory_of_another_experiment_is_refused_and_not_changed(
    whole: Path, experiment: Experiment, difference: str
):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=difference):
        run(experiment, whole)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def never(*_: Any) -> Any:
    raise AssertionError("the corpus is read")


def test_a_folder_with_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(environment, "prepare", never)
    with pytest.raises(UserError, match=r"thesis\.tex"):
        run(EXPERIMENT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused_before_the_corpus_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "prepare", never)
    with lock(RunDir(tmp_path / "run")), pytest.raises(UserError, match="another process is training in it"):
        run(EXPERIMENT, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    with pytest.raises(UserError, match=r"not finite at step \d+; the last good checkpoint is of step \d+ ") as stopped:
        run(changed("train", changed("optimizer", learning_rate=1e30), checkpoint_every=1), tmp_path / "run")
    assert "--optimizer.learning-rate" in str(stopped.value)


def test_training_from_prepared_rows_needs_no_tensorflow(tmp_path: Path):
    program = f"""
import sys
sys.modules["tensorflow"] = None  # an import of it fails
sys.path.insert(0, {str(Path(__file__).parent)!r})
import itertools, pathlib
import numpy as np
from tiny_experiment import changed, EXPERIMENT
from minigpt_jax import corpora
from minigpt_jax.trial import run
from minigpt_jax.data import store
cache = pathlib.Path({str(tmp_path / "cache")!r})
prepared = store.prepare(EXPERIMENT, corpora.open_corpus(EXPERIMENT.data, cache), cache)
def batches(rows, batch_size, seed, start, process_index, process_count):
    return (rows.take(np.arange(batch_size) + i) for i in itertools.count(start))
result = run.run(changed("train", steps=2), pathlib.Path({str(tmp_path / "run")!r}), prepared=prepared, batches=batches)
assert result.progress.step == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_64_bit_types_are_refused_in_process(whole: Path, tmp_path: Path):
    from tiny_sweep import plan

    from minigpt_jax import sweep

    calls = (
        lambda: run(EXPERIMENT, tmp_path / "run"),
        lambda: generate.load(whole),
        lambda: sweep.sweep(plan(tmp_path)),
    )
    for call in calls:
        with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64 is on"):
            call()
    assert not list(tmp_path.iterdir())


def test_commands_compute_in_32_bits_regardless_of_the_environment(whole: Path, tmp_path: Path):
    from minigpt_jax.cli import main

    file = tmp_path / "experiment.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny_experiment import EXPERIMENT as experiment\n"
    )
    jax.config.update("jax_enable_x64", True)  # as JAX_ENABLE_X64=1 does
    try:
        assert main(["train", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    finally:
        jax.config.update("jax_enable_x64", False)
    assert_same_run(whole, tmp_path / "run")


def test_padding_is_no_unknown_token():
    """In a tokenizer.json the unknown token may have id 0, as padding has."""
    rows = Rows(np.array([[9, 0, 5, 0, 0]], np.uint8), np.array([3], np.int32), np.array([3], np.int32))
    tokenizer = types.SimpleNamespace(special=types.SimpleNamespace(unknown=0))
    prepared: Any = types.SimpleNamespace(tokenizer=tokenizer, splits={"valid": rows, "test": rows})
    assert environment.Corpus(prepared).unknown_tokens() == {"validation": 1, "test": 1}
