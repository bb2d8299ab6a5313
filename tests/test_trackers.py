"""Trackers: each records the figures of metrics.jsonl, and a resumed run continues the same record."""

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import changed

from minigpt_jax.errors import UserError
from minigpt_jax.storage import trackers
from minigpt_jax.storage.run_dir import RunDir, check_contents
from minigpt_jax.train.state import Progress

FIGURES = {"loss": 2.5, "perplexity": math.inf, "tokens": 640, "seconds": 1.25}


def opened(path: Path, *names: str, step: int = 0) -> trackers.Trackers:
    path.mkdir(exist_ok=True)
    experiment = changed("train", trackers=names)
    return trackers.open_trackers(names, RunDir(path), experiment, Progress(step=step))


def test_the_metrics_file_is_always_written_with_null_for_figures_that_are_not_finite(tmp_path: Path):
    log = opened(tmp_path)
    log.log(5, "train", FIGURES)
    log.sync()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 5, "split": "train", "loss": 2.5, "perplexity": null, "tokens": 640, "seconds": 1.25}\n'
    )
    log.close()


def test_tensorboard_records_the_figures_of_quality(tmp_path: Path):
    log = opened(tmp_path, "tensorboard")
    log.log(5, "valid", FIGURES)
    log.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"valid/loss" in content
    assert b"valid/tokens" not in content


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_name_of_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--train\.trackers {name}: .*minigpt_jax\[{name}\]"):
        trackers.check_trackers([name])


class NoKeyError(Exception):
    pass


def offline_package(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the package of a tracker by one that can neither log in nor begin a run. Returns its calls."""
    calls = []

    def fail(call: str) -> None:
        calls.append(call)
        raise NoKeyError("No API key configured.\nUse `wandb login` to log in.")

    package: Any = types.ModuleType(name)
    package.login, package.init = lambda: fail("login"), lambda **_: fail("init")
    monkeypatch.setitem(sys.modules, name, package)
    return calls


def test_wandb_without_a_key_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch):
    calls = offline_package("wandb", monkeypatch)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(
        UserError, match=r"--train\.trackers wandb: it cannot log in \(NoKeyError: No API key configured\.\)"
    ):
        trackers.check_trackers(["wandb"])
    assert calls == ["login"]
    for mode in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        trackers.check_trackers(["wandb"])
    assert calls == ["login"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_cannot_begin_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = offline_package(name, monkeypatch)
    with pytest.raises(UserError, match=rf"--train\.trackers {name}: it cannot begin a run \(NoKeyError") as refused:
        opened(tmp_path, name)
    assert "\n" not in str(refused.value)
    assert calls == ["init"]


def test_closing_closes_every_tracker_before_it_raises(tmp_path: Path):
    closed = []

    class Failing:
        def close(self) -> None:
            closed.append(self)
            raise OSError("gone")

    log = trackers.Trackers([Failing(), Failing()])  # pyright: ignore[reportArgumentType]
    with pytest.raises(OSError, match="gone"):
        log.close()
    assert len(closed) == 2


def test_wandb_offline_keeps_one_run_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for step in (0, 5):
        log = opened(tmp_path, "wandb", step=step)
        log.log(step + 5, "valid", FIGURES)
        log.sync()
        log.close()
        ids.append((tmp_path / "wandb-run-id").read_text())
    assert ids[0] == ids[1]
    wandb.teardown()  # waits until W&B's process has written everything
    check_contents(tmp_path)  # in spite of the links to its logs
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(b"valid/loss" in file.read_bytes() for file in files)


def test_wandb_separates_runs_that_are_open_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logs = {name: opened(tmp_path / name, "wandb") for name in ("first", "second")}
    for name, log in logs.items():
        log.log(5, "valid", {name: 1.0})
    for log in logs.values():
        log.close()
    wandb.teardown()
    for name, other in (("first", "second"), ("second", "first")):
        [file] = (tmp_path / name).glob("wandb/offline-run-*/*.wandb")
        assert f"valid/{name}".encode() in file.read_bytes()
        assert f"valid/{other}".encode() not in file.read_bytes()


def test_trackio_separates_runs_that_are_open_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    logs = {name: opened(tmp_path / name, "trackio") for name in ("first", "second")}
    for name, log in logs.items():
        log.log(5, "valid", {name: 1.0})
    for log in logs.values():
        log.close()
    kept = {
        run.name: trackio.SQLiteStorage.get_logs(run.project, run.name) for run in trackio.Api().runs("minigpt_jax")
    }
    assert set(kept) == {"tiny first", "tiny second"}
    for name in logs:
        [line] = kept[f"tiny {name}"]
        assert (line["step"], line[f"valid/{name}"]) == (5, 1.0)
