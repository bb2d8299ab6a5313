"""Checkpoints by Orbax: saved in the background, each whole or not there at all, and read only if whole still."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from minigpt_jax import display, manifest, parallel
from minigpt_jax.errors import UserError
from minigpt_jax.state import Progress, TrainState


class Checkpoints:
    """The checkpoints of a run: saved in the background, each whole or not there at all.

    A checkpoint has the items `params`, `ema` (if kept), `optimizer` and `progress`, so that sampling reads the weights
    alone, and a manifest of its files' sums. The latest `keep` and the one of the lowest validation loss stay. Arrays
    restore onto whatever devices are here. Where there are several processes, all of them make the same calls.
    """

    def __init__(self, folder: Path, keep: int = 1, read_only: bool = False) -> None:
        self.folder = folder
        self.last_saved: int | None = None
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        latest = policies.LatestN(keep)
        with _only_errors():
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    best_fn=lambda metrics: metrics["loss"],
                    best_mode="min",
                    preservation_policy=policies.AnyPreservationPolicy([latest, best]),
                    cleanup_tmp_directories=not read_only,
                    async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
                ),
            )

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the lowest validation loss."""
        return self._manager.best_step()

    def whole_steps(self) -> list[int]:
        """The steps whose files are what was written, in order."""
        return [step for step in self._on_disk() if self._damage(step) is None]

    def newest_whole(self) -> int | None:
        """The latest step whose files are what was written, or None where there is no checkpoint at all.

        Warns of each damaged one on the way. Raises UserError where all of them are damaged.
        """
        return parallel.from_first(self._newest_whole)

    def save(self, state: TrainState, progress: Progress, loss: float | None = None) -> None:
        """Starts a save of the state after `progress.step` steps; `loss` is validation's, if it is known.

        An OSError of the save before, such as that of a full disk, is raised here or by `wait`.
        """
        state = parallel.global_view(state)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "optimizer": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave(progress.to_json()),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        metrics = None if loss is None else {"loss": loss}
        self.wait()  # so that `_seal` knows which step is being saved
        self.last_saved = progress.step
        with _full_disk_told(self.folder):
            self._manager.save(progress.step, args=ocp.args.Composite(**items), metrics=metrics)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, Progress]:
        """The state and progress of a step, by default the latest whole one; `like` gives shapes and types.

        Raises UserError where it is missing, damaged, or another model's.
        """
        step = self._existing(step)
        items = {
            "params": _restore_args(like.params),
            "optimizer": _restore_args(like.opt_state),
            "progress": ocp.args.JsonRestore(),
        }
        if like.ema is not None:
            items["ema"] = _restore_args(like.ema)
        restored = self._restore(step, items)
        progress = Progress.from_json(restored["progress"])
        self.last_saved = step
        state = TrainState(
            step=parallel.put_replicated(jnp.asarray(progress.step, jnp.int32)),
            params=restored["params"],
            opt_state=restored["optimizer"],
            ema=restored["ema"] if like.ema is not None else None,
        )
        return state, progress

    def restore_weights(self, params_like: Any, use_ema: bool, step: int | None = None) -> tuple[Any, int]:
        """The weights to sample with, and their step."""
        step = self._existing(step)
        name = "ema" if use_ema else "params"
        return self._restore(step, {name: _restore_args(params_like)})[name], step

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints past `step`, as damaged ones: training from `step` makes the very same ones again."""

        def remove() -> None:
            for later in (s for s in self._on_disk() if s > step):
                shutil.rmtree(self.folder / str(later))

        parallel.from_first(remove)
        self._manager.reload()

    def wait(self) -> None:
        """Returns once all that was saved is on disk."""
        with _full_disk_told(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what was saved, and frees the folder."""
        with _full_disk_told(self.folder):
            self._manager.close()

    def _seal(self) -> None:
        # Called when all files are written and before the folder gets its final name: no checkpoint lacks a manifest.
        [unfinished] = self.folder.glob(f"{self.last_saved}.orbax-checkpoint-tmp*")
        manifest.seal(unfinished)

    def _on_disk(self) -> list[int]:
        """The steps that have a folder, whatever Orbax thinks of it, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def _damage(self, step: int) -> str | None:
        damage = manifest.damage(self.folder / str(step))
        return damage or (None if step in self.steps else f"{self.folder / str(step)} is incomplete")

    def _newest_whole(self) -> int | None:
        damages = []
        for step in reversed(self._on_disk()):
            damage = self._damage(step)
            if damage is None:
                for line in damages:
                    display.warn(f"{line}: the checkpoint of step {step} is used instead")
                return step
            damages.append(damage)
        if damages:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damages)}; restore the folder from a copy, or "
                "train anew in another --run-dir"
            )
        return None

    def _existing(self, step: int | None) -> int:
        if step is None:
            step = self.newest_whole()
            if step is None:
                raise UserError(f"{self.folder} holds no checkpoint; train to the first --train.checkpoint-every")
            return step
        if step not in self._on_disk():
            steps = ", ".join(map(str, self._on_disk())) or "none"
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        damage = parallel.from_first(lambda: self._damage(step))
        if damage is not None:
            raise UserError(f"the checkpoint of step {step} is damaged: {damage}; restore it, or name another step")
        return step

    def _restore(self, step: int, items: dict[str, Any]) -> Any:
        for name in ("params", "ema"):
            # Orbax says it only once it reads, and leaves tracebacks of its threads behind.
            reason = name in items and _misfit(self.folder / str(step) / name, items[name].item)
            if reason:
                raise UserError(
                    f"{self.folder / str(step)} does not fit its run's config.json: {reason}; restore the folder or "
                    "train anew"
                )
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{self.folder / str(step)} does not fit its run's config.json, is damaged, or of another "
                f"version of minigpt_jax ({reason}); restore the folder or train anew"
            ) from error


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Of a folder that is opened for reading Orbax warns that it is read only."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, logging.ERROR))  # absl counts downwards
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _misfit(folder: Path, like: Any) -> str | None:
    """The first array whose shape on disk is another than in `like`, or that only one of them has."""
    if not (folder / "manifest.ocdbt").is_file():
        return f"{folder} has no index"
    try:
        metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder.absolute()))
    except (OSError, ValueError, KeyError):
        return f"{folder} cannot be read"
    shapes = [_shapes(tree) for tree in (getattr(metadata, "tree", metadata), like)]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        there, wanted = (f"{shape[path]}" if path in shape else "not there" for shape in shapes)
        if there != wanted:
            return f"{path} is {there} on disk, and {wanted} by the configuration"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Raises what the writers tell of a full disk, each in its own way, as the OSError that it is."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder)) from error
        raise


def _restore_args(like: Any) -> ocp.args.StandardRestore:
    sharding = parallel.replicated()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    return ocp.args.StandardRestore(abstract)
