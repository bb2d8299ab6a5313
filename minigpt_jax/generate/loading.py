"""A run directory's model in this process."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from minigpt_jax import model, tokenizer
from minigpt_jax.cache import keep_compiled_programs
from minigpt_jax.errors import UserError
from minigpt_jax.generate.language_model import LanguageModel
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_code import trusted_experiment
from minigpt_jax.storage.run_dir import RunDir


def load(
    run_dir: str | Path,
    step: int | Literal["best"] | None = None,
    *,
    trust_code: bool = False,
    code: Sequence[str | Path] = (),
) -> LanguageModel:
    """The model of a run directory, at its latest checkpoint or at that of `step`.

    Where the model needs code of the user's own, `trust_code` runs the copy in the run directory, and `code` names
    files to run in its place; see `storage.run_code`.

    Raises UserError if the directory or its checkpoint is missing, if they do not fit, or if code may not be run.
    """
    files = RunDir(Path(run_dir))
    experiment = trusted_experiment(files, trust_code=trust_code, code_files=code)
    keep_compiled_programs()
    pieces = tokenizer.load(files.tokenizer)
    if not files.checkpoints.is_dir():
        raise UserError(f"{run_dir} holds no checkpoint yet; train on, to the first --train.checkpoint-every")
    use_ema = experiment.optimizer.ema_decay is not None
    with contextlib.closing(Checkpoints(files.checkpoints, read_only=True)) as checkpoints:
        weights, step = checkpoints.restore_weights(model.parameter_shapes(experiment), use_ema, step)
    return LanguageModel(experiment, pieces, weights, step, path=files.path.absolute())
