"""Checkpoints: exact restoration, which ones are kept, and refusals in one line."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from minigpt_jax.errors import UserError
from minigpt_jax.parallel import devices
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress, TrainState


def state_at(step: int, width: int = 5, ema: bool = False) -> TrainState:
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(step), (3, width))}}
    moments = jax.tree.map(lambda x: x * 0.5, params)
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=((jnp.int32(step), moments),),
        ema=jax.tree.map(lambda x: x + 1, params) if ema else None,
    )
    return devices.put_replicated(state)


def save_all(folder: Path, losses: dict[int, float | None], keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for step, loss in losses.items():
        checkpoints.save(state_at(step), Progress(step=step), loss)
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("ema", [False, True])
def test_a_saved_state_is_restored_exactly(tmp_path: Path, ema: bool):
    state = state_at(3, ema=ema)
    progress = Progress(step=3, tokens=2**40, seconds=1.25, since_log=LossSums(0.1, 7, 30))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, progress)
    checkpoints.close()

    restored, counts = Checkpoints(tmp_path).restore(state_at(0, ema=ema))
    assert counts == progress
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
        assert after.sharding.is_equivalent_to(devices.replicated(), after.ndim)


def test_the_latest_and_the_best_are_kept(tmp_path: Path):
    checkpoints = save_all(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.5})
    assert checkpoints.steps == [2, 4, 5]
    assert (checkpoints.latest, checkpoints.best) == (5, 2)


@pytest.mark.parametrize(("use_ema", "expected"), [(False, "params"), (True, "ema")])
def test_sampling_reads_only_the_weights(tmp_path: Path, use_ema: bool, expected: str):
    state = state_at(2, ema=True)
    with_ema = Checkpoints(tmp_path)
    with_ema.save(state, Progress(step=2))
    with_ema.close()
    weights, step = Checkpoints(tmp_path, read_only=True).restore_weights(state.params, use_ema)
    assert step == 2
    np.testing.assert_array_equal(weights["layer"]["kernel"], getattr(state, expected)["layer"]["kernel"])


def test_a_missing_step_is_refused(tmp_path: Path):
    checkpoints = save_all(tmp_path, {1: None, 2: None})
    with pytest.raises(UserError, match="no checkpoint of step 7; it has 1, 2"):
        checkpoints.restore(state_at(0), step=7)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "empty").restore(state_at(0))


@pytest.mark.parametrize("change", ["width", "layer"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, change: str):
    save_all(tmp_path, {1: None}).close()
    like = state_at(0, width=6) if change == "width" else state_at(0)
    if change == "layer":
        like = dataclasses.replace(like, params={"other": like.params["layer"]})
    with pytest.raises(UserError, match=r"does not fit its run's config\.json") as refused:
        Checkpoints(tmp_path).restore_weights(like.params, use_ema=False)
    assert "\n" not in str(refused.value)
    assert ("is (3, 5) on disk, and (3, 6)" if change == "width" else "missing") in str(refused.value)


def test_an_interrupted_save_is_not_a_checkpoint(tmp_path: Path):
    save_all(tmp_path, {1: None}).close()
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "params").mkdir()
    assert Checkpoints(tmp_path).latest == 1


def test_reading_gives_no_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    save_all(tmp_path, {3: 1.0}).close()
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    verbosity = logging.get_verbosity()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps == [3]
    assert caplog.records == []
    assert logging.get_verbosity() == verbosity
