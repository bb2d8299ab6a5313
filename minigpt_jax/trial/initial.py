"""A trained model from which a run starts, in place of fresh weights."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax import tokenizer
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.parallel import devices
from minigpt_jax.storage.run_dir import RunDir, has_checkpoint
from minigpt_jax.tokenizer import Tokenizer
from minigpt_jax.train.state import TrainState

ORIGIN = "init_from"
"""The entry of config.json that says what the run started from."""


def origin(lm: LanguageModel) -> dict[str, Any]:
    """What config.json records of the model: its folder, its step, and the hash of its weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(lm.weights):
        digest.update(jax.tree_util.keystr(path, simple=True, separator=".").encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {"path": None if lm.path is None else str(lm.path), "step": lm.step, "weights": digest.hexdigest()}


def recorded_origin(run_dir: RunDir) -> dict[str, Any] | None:
    """What the run in this directory started from, or None if there is no run or its weights were fresh."""
    return run_dir.description().get(ORIGIN) if run_dir.config.exists() else None


def check_origin(run_dir: RunDir, path: Path | None) -> None:
    """Checks that the run in this directory, if it has a checkpoint to resume from, started from the model of a folder.

    Raises:
        UserError: it started from another model, or from fresh weights.
    """
    if not has_checkpoint(run_dir):
        return
    recorded, given = recorded_origin(run_dir), None if path is None else str(path)
    if recorded is None or recorded.get("path") != given:
        started = "fresh weights" if recorded is None else recorded.get("path") or "a model in memory"
        raise UserError(
            f"--init-from {given or 'a model in memory'}: the run in {run_dir.path} started from {started}; name "
            "another --run-dir"
        )


def start_of(run_dir: RunDir, lm: LanguageModel | None) -> tuple[dict[str, Any] | None, Tokenizer | None]:
    """The origin of a run and the tokenizer that it takes over, or None and None if it starts from fresh weights.

    A run that resumes has both in its own directory.

    Args:
        lm: the model to start from, if one was given.

    Raises:
        UserError: the run in this directory started from another model.
    """
    if lm is not None:
        check_origin(run_dir, lm.path)
    if has_checkpoint(run_dir):
        recorded = recorded_origin(run_dir)
        return recorded, None if recorded is None else tokenizer.load(run_dir.tokenizer)
    return (None, None) if lm is None else (origin(lm), lm.tokenizer)


def with_weights(state: TrainState, lm: LanguageModel, experiment: Experiment) -> TrainState:
    """A fresh state whose parameters are those of a trained model. Learned positions past the window are left out."""
    # Copies, since training donates its state.
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float32), lm.weights)
    if experiment.model.positions == "learned":
        positions = params["position_embedding"]["embedding"][: experiment.data.sequence_length]
        params = {**params, "position_embedding": {"embedding": positions}}
    ema = None if state.ema is None else jax.tree.map(np.copy, params)
    return dataclasses.replace(state, params=devices.put_replicated(params), ema=devices.put_replicated(ema))
