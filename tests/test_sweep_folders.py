"""Trials of a sweep whose run directories other processes use, or that hold other files."""

import contextlib
import os
import shutil
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import batches, plan

from minigpt_jax import sweep
from minigpt_jax.storage import run_dir
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.sweep import worker


@pytest.mark.parametrize("max_trials", [1, 8])
def test_a_trial_whose_run_directory_is_in_use_is_trained_after_the_others(
    tmp_path: Path, max_trials: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    sweep_plan = plan(tmp_path, "optimizer.learning_rate=3e-3,1e-2", "train.steps=2")
    begun = []

    def begin(*arguments: Any) -> Any:
        begun.append(arguments)
        return batches(*arguments)

    def unlock(_: float) -> None:
        assert len(begun) == 1
        held.close()

    with contextlib.ExitStack() as held:
        held.enter_context(run_dir.lock(RunDir(sweep_plan.folder / "trials" / "0000-seed-0")))
        clock = types.SimpleNamespace(sleep=unlock)  # the worker sleeps only when all other trials are done
        monkeypatch.setattr(worker, "time", clock)
        rows = sweep.sweep(sweep_plan, source=begin, max_trials=max_trials).rows
    assert [(row["trial"], row["status"]) for row in rows] == [
        ("0000-seed-0", "complete"),
        ("0001-seed-0", "complete"),
    ]
    assert capsys.readouterr().out.count("trial 0000-seed-0 has to wait: another process uses") == 1


def test_a_run_directory_that_holds_other_files_fails_its_trial_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    sweep_plan = plan(tmp_path, "optimizer.learning_rate=3e-3,1e-2", "train.steps=2")
    foreign = sweep_plan.folder / "trials" / "0000-seed-0" / "thesis.tex"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    rows = sweep.sweep(sweep_plan, source=batches).rows
    assert [row["status"] for row in rows] == ["failed", "complete"]
    assert "holds thesis.tex but no run" in " ".join(capsys.readouterr().out.split())


def test_the_seeds_of_a_configuration_resume_together(tmp_path: Path):
    sweep_plan = plan(tmp_path, "train.steps=6", "train.checkpoint_every=2", "seed=0,1")

    def interrupting(rows: Any, size: int, seed: int, *place: int) -> Iterator[Any]:
        for i, batch in enumerate(batches(rows, size, seed, *place)):
            if (seed, i) == (0, 4):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    assert sweep.sweep(sweep_plan, source=interrupting).interrupted
    folders = [sweep_plan.folder / "trials" / f"0000-seed-{seed}" / "checkpoints" for seed in (0, 1)]
    *_, before, last = sorted(int(path.name) for path in folders[0].glob("[0-9]*"))
    shutil.rmtree(folders[1] / str(last))
    starts = []

    def from_start(rows: Any, size: int, seed: int, start: int, *share: int) -> Any:
        starts.append(start)
        return batches(rows, size, seed, start, *share)

    rows = sweep.sweep(sweep_plan, source=from_start).rows
    assert starts == [before, before]
    assert [row["status"] for row in rows] == ["complete", "complete"]
