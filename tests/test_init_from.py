"""Training that starts from a trained model: `run(…, init_from=…)` and `--init-from`."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_experiment import EXPERIMENT, changed
from tiny_sweep import batches

from minigpt_jax import config, generate, sweep
from minigpt_jax.cli import main
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.sweep import axes as sweep_axes
from minigpt_jax.trial.run import run

HEAD = "import sys\nsys.path.insert(0, {tests!r})\nfrom tiny_experiment import EXPERIMENT as experiment\n"
LEARNED = changed("model", changed("train", steps=4), positions="learned")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with learned positions, with an average of its weights."""
    path = tmp_path_factory.mktemp("trained") / "first"
    run(changed("optimizer", LEARNED, ema_decay=0.5), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An experiment of another model and another corpus than those of `trained`."""
    path = tmp_path / "experiment.py"
    path.write_text(
        HEAD.format(tests=str(Path(__file__).parent))
        + "from dataclasses import replace\n"
        + "from minigpt_jax import ModelConfig, TokenizerConfig\n"
        + "experiment = replace(experiment, name='second', data=replace(experiment.data, stories_seed=7),\n"
        + "    tokenizer=TokenizerConfig(vocabulary_size=200), model=ModelConfig(width=24, num_heads=4))\n"
    )
    return path


def weights(run_dir: Path, step: int | None = None) -> Any:
    return jax.tree.map(np.asarray, generate.load(run_dir, step).weights)


def command(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_starts_with_the_weights_at_step_0(trained: Path, tmp_path: Path, ema_decay: float | None) -> None:
    """A learning rate of 0 keeps them, so that the first checkpoint has them too."""
    lm = generate.load(trained)
    other = changed("optimizer", changed("train", steps=1), learning_rate=0.0, ema_decay=ema_decay)
    run(config.inherited(other, lm.experiment), tmp_path / "run", init_from=lm)
    for kept, leaf in zip(jax.tree.leaves(weights(tmp_path / "run")), jax.tree.leaves(lm.weights), strict=True):
        np.testing.assert_array_equal(kept, leaf)
    assert [line["step"] for line in read_metrics(RunDir(tmp_path / "run"))] == [1, 1]


def test_the_command_takes_model_tokenizer_and_window_from_the_run(trained: Path, file: Path, tmp_path: Path) -> None:
    flags = ["--train.steps", 2, "--train.checkpoint-every", 1, "--optimizer.learning-rate", 1e-3, "--model.dropout", 0]
    assert command(file, "--init-from", trained, "--run-dir", tmp_path / "run", *flags) == 0
    description = RunDir(tmp_path / "run").description()
    experiment, first = RunDir(tmp_path / "run").experiment(), RunDir(trained).experiment()
    assert experiment.model == dataclasses.replace(first.model, dropout=0.0)
    assert experiment.tokenizer == first.tokenizer
    assert (experiment.data.stories_seed, experiment.optimizer.ema_decay) == (7, None)
    assert description["init_from"]["path"] == str(trained)
    assert description["init_from"]["step"] == 4
    assert len(description["init_from"]["weights"]) == 64
    one, other = (RunDir(path).description()["fingerprints"] for path in (trained, tmp_path / "run"))
    assert one["tokenizer"] == other["tokenizer"]
    assert one["corpus"] != other["corpus"]


def test_the_same_command_resumes_without_the_initial_folder(trained: Path, file: Path, tmp_path: Path, capsys) -> None:
    first = shutil.copytree(trained, tmp_path / "first")
    words = [file, "--init-from", first, "--train.log-every", 1, "--data.sequence-length", 24]
    assert command(*words, "--train.steps", 4, "--run-dir", tmp_path / "whole") == 0
    assert command(*words, "--train.steps", 2, "--run-dir", tmp_path / "run") == 0
    shutil.rmtree(first)
    assert command(*words, "--train.steps", 4, "--run-dir", tmp_path / "run") == 0
    assert "resuming from step 2" in capsys.readouterr().out
    for a, b in zip(*(jax.tree.leaves(weights(tmp_path / name)) for name in ("run", "whole")), strict=True):
        np.testing.assert_array_equal(a, b)
    assert RunDir(tmp_path / "run").description() == RunDir(tmp_path / "whole").description()
    assert command(*words[:1], "--init-from", trained, "--train.steps", 4, "--run-dir", tmp_path / "run") == 2
    assert "started from" in capsys.readouterr().err


def test_a_tokenizer_that_is_taken_over_needs_its_file_no_longer(trained: Path, file: Path, tmp_path: Path) -> None:
    folder, imported, path = (tmp_path / name for name in ("folder", "imported", "run"))
    assert command("export", trained, "--to", folder) == 0
    assert command("import", folder, "--to", imported) == 0
    assert command(file, "--init-from", folder, "--run-dir", path, "--train.steps", 1) == 0
    shutil.rmtree(folder)
    assert command(file, "--init-from", folder, "--run-dir", path, "--train.steps", 2) == 0
    assert generate.load(path).step == 2
    assert command(file, "--init-from", imported, "--run-dir", tmp_path / "other", "--train.steps", 1) == 0


def test_a_shorter_window_keeps_its_positions(trained: Path, tmp_path: Path) -> None:
    lm = generate.load(trained)
    other = config.inherited(changed("train", changed("optimizer", learning_rate=0.0), steps=1), lm.experiment)
    run(changed("data", other, sequence_length=20), tmp_path / "run", init_from=lm)
    kept = weights(tmp_path / "run")["position_embedding"]["embedding"]
    np.testing.assert_array_equal(kept, lm.weights["position_embedding"]["embedding"][:20])


CONTRADICTIONS = {
    "--model.width 24": "has 16",
    "--model.positions rope": "has learned",
    "--tokenizer.vocabulary-size 200": "has 300",
    "--data.sequence-length 33": "at most 32",
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_a_contradicting_flag_is_named(trained: Path, file: Path, tmp_path: Path, capsys, flag: str) -> None:
    assert command(file, "--init-from", trained, "--run-dir", tmp_path / "run", *flag.split()) == 2
    error = capsys.readouterr().err
    assert flag in error
    assert CONTRADICTIONS[flag] in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_flag_may_repeat_what_the_model_has(trained: Path, file: Path, tmp_path: Path) -> None:
    words = ["--model.width", 16, "--train.steps", 1, "--run-dir", tmp_path / "run"]
    assert command(file, "--init-from", trained, *words) == 0


def test_another_run_is_not_resumed(trained: Path, file: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(trained, tmp_path / "run")
    assert command(file, "--init-from", trained, "--run-dir", tmp_path / "run") == 2
    assert "started from fresh weights" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}", '{"experiment": {}}'])
def test_a_folder_without_a_model_is_refused(file: Path, tmp_path: Path, capsys, content: str | None) -> None:
    if content is not None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text(content)
    assert command(file, "--init-from", tmp_path / "other", "--run-dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"--init-from {tmp_path / 'other'}" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_experiment_of_another_form_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.positions rope: the initial model has learned"):
        run(EXPERIMENT, tmp_path / "run", init_from=generate.load(trained))
    assert not (tmp_path / "run").exists()


def test_documents_are_not_isolated_where_a_row_is_one() -> None:
    packed = Experiment("a", DataConfig(layout="packed"), model=ModelConfig(isolate_documents=True))
    for layout in ("packed", "whole", "lines"):
        inherited = config.inherited(Experiment("b", DataConfig(layout=layout), TokenizerConfig()), packed)
        config.validate(inherited)
        assert inherited.model.isolate_documents == (layout != "lines")


def test_every_trial_of_a_sweep_starts_from_the_weights(trained: Path, tmp_path: Path):
    """At a learning rate of 0 the weights stay."""
    lm = generate.load(trained)
    experiment = config.inherited(changed("train", EXPERIMENT, steps=2), lm.experiment)
    axes = sweep_axes.parse(["optimizer.learning_rate=0,0.01", "model.dropout=0,0.1", "seed=0,1"])
    plan = sweep.make(experiment, axes, root=tmp_path, init_from=lm)
    rows = sweep.sweep(plan, source=batches).rows
    assert len(rows) == 8
    for row in rows:
        trial = plan.folder / row["run_dir"]
        found = [
            np.array_equal(kept, leaf)
            for kept, leaf in zip(jax.tree.leaves(weights(trial)), jax.tree.leaves(lm.weights), strict=True)
        ]
        assert all(found) == (row["optimizer.learning_rate"] == 0)
        assert RunDir(trial).description()["init_from"]["path"] == str(trained)
        assert generate.load(trial).tokenizer.fingerprint == lm.tokenizer.fingerprint


@pytest.mark.parametrize("axis", ["model.width=16,24", "tokenizer.lowercase=true,false", "data.sequence_length=16,64"])
def test_an_axis_on_which_the_weights_depend_is_refused(axis: str, trained: Path, tmp_path: Path):
    lm = generate.load(trained)
    experiment = config.inherited(EXPERIMENT, lm.experiment)
    field, _, values = axis.partition("=")
    bad = values.split(",")[1].title()
    with pytest.raises(UserError, match=rf"{field}={bad}: the weights of --init-from do not fit it; drop this axis"):
        sweep.make(experiment, sweep_axes.parse([axis]), root=tmp_path, init_from=lm)


def test_a_sweep_from_the_command_line_resumes_from_the_same_weights_alone(
    trained: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    flags = ["--", "--train.steps", 1]
    for _ in range(2):
        assert command("sweep", file, "optimizer.learning_rate=0,1e-2", "--init-from", trained, *flags) == 0
    [trial] = (tmp_path / "runs/sweeps/second/trials").glob("0001*")
    assert RunDir(trial).experiment().model == generate.load(trained).experiment.model
    assert command("sweep", file, "optimizer.learning_rate=0,1e-2", "--init-from", trial, *flags) == 2
    assert "--name second: the sweep of this name has another init_from" in capsys.readouterr().err
    assert command("sweep", file, "seed=0,1", "--init-from", trained, "--", "--model.width", 32) == 2
    error = capsys.readouterr().err
    assert f"--model.width 32: the model of --init-from {trained} has 16" in error
    assert len(error.splitlines()) == 1
