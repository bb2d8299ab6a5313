"""A run directory made of a Hugging Face folder."""

import contextlib
import secrets
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from minigpt_jax.errors import UserError
from minigpt_jax.files import make_folder
from minigpt_jax.interchange import huggingface
from minigpt_jax.parallel import devices
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir, check_room, write_description, write_tokenizer
from minigpt_jax.storage.versions import versions
from minigpt_jax.train.state import Progress, TrainState


def import_folder(folder: str | Path, to: str | Path) -> RunDir:
    """Makes a run directory that has the model of a Hugging Face folder as its checkpoint of step 0.

    The directory appears once it is complete. It has no optimiser state and no validation part.

    Args:
        folder: a folder with config.json, safetensors and tokenizer.json.
        to: the run directory, which must not exist yet, or be an empty folder.

    Raises:
        UserError: the folder has no model that can be described here, or the run directory cannot be made.
    """
    run_dir = RunDir(to)
    if run_dir.path.exists() and not (run_dir.path.is_dir() and not any(run_dir.path.iterdir())):
        raise UserError(f"--to {to}: there is something already; name a new folder")
    lm = huggingface.load_huggingface(folder)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lm.weights))
    try:
        check_room(run_dir, 2 * weights)
    except UserError as error:
        raise UserError(str(error).replace("--run-dir", "--to")) from error
    path = run_dir.path.absolute()
    make_folder(path.parent, "--to")
    partial = RunDir(path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial"))
    partial.path.mkdir()
    try:
        fingerprints = {"tokenizer": lm.tokenizer.fingerprint}
        origin = {"path": str(lm.path), "model_type": huggingface.model_type(folder)}
        write_description(partial, lm.experiment, fingerprints, versions(), imported=origin)
        write_tokenizer(partial, lm.tokenizer.save)
        with contextlib.closing(Checkpoints(partial.checkpoints)) as checkpoints:
            step = devices.put_replicated(jnp.zeros((), jnp.int32))
            checkpoints.save(TrainState(step, lm.weights, opt_state=None, ema=None), Progress())
        partial.path.rename(path)
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
    return run_dir
