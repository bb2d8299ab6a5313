"""Sweeps with training: stacks compared with trials trained alone, the files on disk, and lost workers."""

import contextlib
import csv
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_sweep
from tiny_experiment import changed
from tiny_sweep import EXPERIMENT, batches, plan

from minigpt_jax import corpora, generate, model, rng, sweep
from minigpt_jax.cache import cache_dir
from minigpt_jax.data import store
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.sweep import worker
from minigpt_jax.train import evaluate, memory, optim, program
from minigpt_jax.train.step import StepSpec, init_state, train_step
from minigpt_jax.trial.run import run

STEPS = EXPERIMENT.train.steps or 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[sweep.Plan, list[dict], int]:
    """A sweep of 8 trials in one stack, its rows, and the number of compilations of the train step."""
    traces = []
    step = train_step

    def counted(*arguments: Any) -> Any:
        traces.append(1)
        return step(*arguments)

    program._stack.cache_clear()
    sweep_plan = plan(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "train_step", counted)
        outcome = sweep.sweep(sweep_plan, source=batches)
    assert not outcome.interrupted
    return sweep_plan, outcome.rows, len(traces)


def losses(folder: Path, split: str) -> list[float]:
    return [line["loss"] for line in read_metrics(RunDir(folder)) if line["split"] == split]


@functools.cache
def prepared() -> store.Prepared:
    corpus = corpora.open_corpus(EXPERIMENT.data, cache_dir())
    return store.prepare(EXPERIMENT, corpus, cache_dir())


@functools.cache
def alone_program(dropout: float) -> Any:
    gpt = model.build(changed("model", EXPERIMENT, dropout=dropout))
    trainer = StepSpec(gpt, EXPERIMENT.optimizer, train_line_end=False)
    return trainer, jax.jit(functools.partial(train_step, trainer))


initial = jax.jit(init_state, static_argnums=0)


def test_a_stack_has_the_loss_curves_of_its_trials_trained_alone_and_compiles_once(whole: tuple):
    sweep_plan, rows, compiled = whole
    assert compiled == 1
    assert len(rows) == 8
    curves = []
    for row in rows:
        curve = losses(sweep_plan.folder / row["run_dir"], "train")
        trainer, step = alone_program(row["model.dropout"])
        hyper = optim.hyperparameters(
            changed("optimizer", learning_rate=row["optimizer.learning_rate"]).optimizer, total_steps=STEPS
        )
        state = initial(trainer, hyper, rng.stream(row["seed"], "init"))
        stream = batches(prepared().splits["train"], 16, row["seed"], 0, 0, 1)
        alone = []
        for _ in range(STEPS):
            state, out = step(state, next(stream), hyper, rng.stream(row["seed"], "dropout"))
            alone.append(float(out.sums.nats) / float(out.sums.tokens))
        np.testing.assert_allclose(curve, alone, rtol=2e-5)
        valid = evaluate.evaluate(trainer.model, state.weights, prepared().splits["valid"], 16)
        assert row["loss"] == pytest.approx(valid.loss, rel=2e-5)
        curves.append(curve)
    assert len({tuple(curve) for curve in curves}) == 8  # the trials differ from each other


def test_a_trial_equals_an_ordinary_run_of_its_experiment_and_can_be_resumed(whole: tuple, tmp_path: Path):
    sweep_plan, rows, _ = whole
    row = next(row for row in rows if (row["model.dropout"], row["seed"]) == (0, 5))
    experiment = sweep_plan.trial(
        row["configuration"], {n: row[n] for n in ("model.dropout", "optimizer.learning_rate")}, row["seed"]
    ).experiment
    run(experiment, tmp_path / "run", prepared=prepared(), batches=batches)
    ours = read_metrics(RunDir(sweep_plan.folder / row["run_dir"]))
    theirs = read_metrics(RunDir(tmp_path / "run"))
    assert [(a["step"], a["split"], a["tokens"]) for a in ours] == [
        (b["step"], b["split"], b["tokens"]) for b in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in {"loss", "learning_rate", "grad_norm", "bits_per_byte"} & set(a):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    import shutil

    copy = shutil.copytree(sweep_plan.folder / row["run_dir"], tmp_path / "copy")
    lm = generate.load(copy)
    sums = evaluate.evaluate(lm.model, lm.weights, Rows.load(RunDir(copy).rows("valid")), 16)
    assert sums.loss == pytest.approx(row["loss"], rel=1e-5)
    assert (copy / "samples" / f"step-{STEPS:08}.txt").read_text().startswith("once upon a time")
    further = changed("train", experiment, steps=STEPS + 4)
    result = run(further, copy, batches=batches)
    assert result.progress.step == STEPS + 4


def test_results_have_a_row_for_each_configuration_and_seed(whole: tuple):
    sweep_plan, rows, _ = whole
    lines = (sweep_plan.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [(row["configuration"], row["seed"]) for row in rows] == [(c, s) for c in range(4) for s in (0, 5)]
    assert [(row["model.dropout"], row["optimizer.learning_rate"]) for row in rows[::2]] == [
        (0.0, 3e-3), (0.0, 1e-2), (0.2, 3e-3), (0.2, 1e-2)
    ]  # fmt: skip
    for row in rows:
        assert (row["status"], row["step"]) == ("complete", STEPS)
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
        assert (sweep_plan.folder / row["run_dir"] / "config.json").exists()
        assert row["trial"] == Path(row["run_dir"]).name
    with (sweep_plan.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table
    description = json.loads((sweep_plan.folder / "sweep.json").read_text())
    assert description["axes"][-1] == {"field": "seed", "values": [0, 5]}
    assert (description["trials"], description["search"], description["objective"]) == (4, "grid", "valid loss")


def test_a_finished_sweep_is_not_changed(whole: tuple):
    sweep_plan, rows, _ = whole
    before = {path: path.stat().st_mtime_ns for path in sweep_plan.folder.rglob("trials/*/*")}

    def never(*_: Any) -> Any:
        raise AssertionError("the finished sweep is trained")

    assert sweep.sweep(sweep_plan, source=never).rows == rows
    assert {path: path.stat().st_mtime_ns for path in sweep_plan.folder.rglob("trials/*/*")} == before


def test_a_diverging_trial_does_not_change_the_others(tmp_path: Path, whole: tuple):
    _, undisturbed, _ = whole
    sweep_plan = plan(tmp_path, "optimizer.learning_rate=1e-2,1e30", "seed=0")
    good, bad = sweep.sweep(sweep_plan, source=batches).rows
    same = next(r for r in undisturbed if (r["model.dropout"], r["optimizer.learning_rate"], r["seed"]) == (0, 1e-2, 0))
    assert good["loss"] == pytest.approx(same["loss"], rel=2e-5)
    assert (bad["status"], bad["loss"], bad["perplexity"]) == ("diverged", None, None)
    assert 1 < bad["step"] < STEPS


def test_a_trial_that_does_not_fit_into_memory_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = sweep.sweep(plan(tmp_path, "model.width=16,10000000", "train.steps=2"), source=batches).rows
    assert [row["status"] for row in rows] == ["complete", "failed"]
    assert "--model.width 10000000: training takes at least" in " ".join(capsys.readouterr().out.split())


def test_a_sweep_that_is_refused_for_its_size_leaves_its_name_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(worker, "bytes_needed", lambda *_: 10**18)
        with pytest.raises(UserError, match=r"^--name .*: its disk has .* MB free"):
            sweep.sweep(plan(tmp_path, "train.steps=1,2"), source=batches)
    other = plan(tmp_path, "train.steps=1,2", experiment=tiny_sweep.changed("model", width=8))
    assert [row["status"] for row in sweep.sweep(other, source=batches).rows] == ["complete"] * 2


def test_a_value_within_a_range_that_is_not_allowed_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Beforehand only the ends of a range are checked: 4 and 8 rows divide into 4 parts, those between do not."""
    made = plan(
        tmp_path,
        "train.batch_size=4..8",
        search="random",
        prune=False,
        trials=5,
        experiment=tiny_sweep.changed("train", accumulate=4, steps=2),
    )
    rows = sweep.sweep(made, source=batches).rows
    status = {row["train.batch_size"]: row["status"] for row in rows}
    assert status == {size: "complete" if size % 4 == 0 else "failed" for size in range(4, 9)}
    assert "train.accumulate" in capsys.readouterr().out


def test_the_worse_half_is_pruned_at_a_rung(tmp_path: Path):
    rates = "optimizer.learning_rate=1e-7,1e-2,1e-6,5e-3"
    rows = sweep.sweep(plan(tmp_path, rates, "seed=0,1", prune=True), source=batches).rows
    ends = [(row["status"], row["step"]) for row in rows[::2]]
    assert ends == [(row["status"], row["step"]) for row in rows[1::2]]  # the seeds of a configuration end together
    assert [ends[0], ends[2]] == [("pruned", 3)] * 2
    assert sorted([ends[1], ends[3]]) == [("complete", STEPS), ("pruned", 6)]
    for row in rows:
        lm = generate.load(tmp_path / "tiny" / row["run_dir"])  # a pruned trial has a checkpoint, so it can be resumed
        assert lm.step == row["step"]
        assert losses(tmp_path / "tiny" / row["run_dir"], "valid")[-1] == row["loss"]


@pytest.mark.slow
def test_trials_of_different_shapes_form_groups(tmp_path: Path):
    sweep_plan = plan(tmp_path, "model.width=8,24", "train.steps=2", "optimizer.schedule=constant,linear")
    rows = sweep.sweep(sweep_plan, source=batches, max_trials=3).rows
    assert [row["status"] for row in rows] == ["complete"] * 4
    widths = [generate.load(sweep_plan.folder / row["run_dir"]).model.config.width for row in rows]
    assert widths == [8, 8, 24, 24]


def test_the_stack_is_reduced_until_it_fits_into_memory(monkeypatch: pytest.MonkeyPatch):
    inputs = program.stack_inputs([EXPERIMENT] * 40, [0] * 40, total_steps=1)
    one = next(batches(prepared().splits["train"], 16, 0, 0, 0, 1))
    shaped = type(one)(*(x[None, None] for x in one))
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(program.Stack, "compiled", lambda _, stacked, __: asked.append(stacked.stream.size))
        patch.setattr(program, "memory_needed", lambda *_: 100.0 * asked[-1])
        for there, fitting in ((1e9, 40), (100 * 24 / program.MEMORY_SHARE, 20), (1, 1)):
            asked.clear()
            patch.setattr(memory, "free", lambda there=there: there)
            assert program.fitting_trials(EXPERIMENT, False, inputs, shaped) == fitting
    assert asked == [40, 21, 10, 5, 3, 2]  # 40, 20, 10, 5, 3 and 2 trials, on 8 devices or fewer
    # The memory analysis of a program is more than its state, and less than many times the state.
    stack = program.stack(EXPERIMENT, False, 4)
    stacked = stack.stacked(jax.tree.map(lambda x: x[:4], inputs))
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(stack.init, stacked)))
    assert state < program.memory_needed(stack.compiled(stacked, shaped), stack.devices) < 100 * state
    assert memory.free() > 2**20


@pytest.mark.parametrize(("trials", "devices"), [(1, 1), (3, 3), (8, 8), (9, 5), (16, 8), (17, 6)])
def test_a_stack_uses_no_more_devices_than_its_rounds_need(trials: int, devices: int):
    assert program.devices_for(trials) == devices


WORKER = """
import sys, threading
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_sweep import batches, plan
from minigpt_jax import sweep
def source(rows, size, seed, start, *share):
    for i, batch in enumerate(batches(rows, size, seed, start, *share), start):
        if i == 9:
            threading.Event().wait()  # blocks, after the checkpoint of step 6
        yield batch
sweep.sweep(plan(Path({root!r})), source=source, max_trials=4, lease=2.0)
"""


def test_another_worker_finishes_the_trials_of_a_killed_one_once(tmp_path: Path, whole: tuple):
    _, undisturbed, _ = whole
    code = WORKER.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stdout=subprocess.PIPE, text=True)
    sweep_plan = plan(tmp_path)
    trials = sweep_plan.folder / "trials"
    try:
        while not list(trials.glob("*/checkpoints/6")):  # half way
            assert process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        begun = {path.name for path in trials.iterdir()}
        assert len(begun) == 4

        def source(*arguments: Any) -> Iterator[Any]:
            # The other worker is killed while this one trains the remaining trials.
            process.send_signal(signal.SIGKILL)
            process.wait()
            return batches(*arguments)

        outcome = sweep.sweep(sweep_plan, source=source, max_trials=4, lease=2.0)
    finally:
        process.kill()
        process.communicate()
    assert [(row["trial"], row["status"]) for row in outcome.rows] == [(r["trial"], "complete") for r in undisturbed]
    for row, other in zip(outcome.rows, undisturbed, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-5)
        steps = [
            line["step"]
            for line in read_metrics(RunDir(sweep_plan.folder / row["run_dir"]))
            if line["split"] == "train"
        ]
        assert steps == list(range(1, STEPS + 1))
    again = sweep.sweep(sweep_plan, source=source)
    assert again.rows == outcome.rows


def test_an_interrupted_sweep_resumes(tmp_path: Path, whole: tuple):
    _, undisturbed, _ = whole
    sweep_plan = plan(tmp_path)

    def interrupting(*arguments: Any) -> Iterator[Any]:
        for i, batch in enumerate(batches(*arguments)):
            if i == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    outcome = sweep.sweep(sweep_plan, source=interrupting)
    assert outcome.interrupted
    assert outcome.rows == []
    rows = sweep.sweep(sweep_plan, source=batches).rows
    for row, other in zip(rows, undisturbed, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-5)
        assert losses(sweep_plan.folder / row["run_dir"], "train")[5:] == pytest.approx(
            losses(whole[0].folder / other["run_dir"], "train")[5:], rel=2e-5
        )


def test_each_trial_resumes_from_its_own_step(tmp_path: Path, whole: tuple):
    _, undisturbed, _ = whole
    sweep_plan = plan(tmp_path, "optimizer.learning_rate=3e-3,1e-2", "seed=0")

    def interrupting(*arguments: Any) -> Iterator[Any]:
        for i, batch in enumerate(batches(*arguments)):
            if i == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    assert sweep.sweep(sweep_plan, source=interrupting, max_trials=1).interrupted
    [saved] = [int(path.name) for path in sweep_plan.folder.glob("trials/0000-seed-0/checkpoints/*")]
    starts = []

    def from_start(rows: Any, size: int, seed: int, start: int, *share: int) -> Any:
        starts.append(start)
        return batches(rows, size, seed, start, *share)

    rows = sweep.sweep(sweep_plan, source=from_start).rows
    assert 0 < saved < STEPS
    assert sorted(starts) == [0, saved]
    for row in rows:
        rate = row["optimizer.learning_rate"]
        [same] = [
            r for r in undisturbed if (r["model.dropout"], r["optimizer.learning_rate"], r["seed"]) == (0, rate, 0)
        ]
        assert row["loss"] == pytest.approx(same["loss"], rel=2e-5)
