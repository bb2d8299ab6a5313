"""Checkpoints by Orbax: saved in the background, verified after writing, and read only if they are intact."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from minigpt_jax import display
from minigpt_jax.errors import UserError
from minigpt_jax.parallel import devices, processes
from minigpt_jax.storage import manifest
from minigpt_jax.storage.run_dir import write_atomic
from minigpt_jax.train.state import Progress, TrainState

Step = int | Literal["best"] | None
"""A checkpoint: that of a step, that of the lowest validation loss, or the latest intact one."""
_DELETED = ".deleted"


class Checkpoints:
    """The checkpoints of a run, a folder for each step.

    A checkpoint has the items `params`, `ema` and `optimizer` (if they are kept), `progress` and `metrics` (if the step
    was evaluated), so sampling can read only the weights. It also has a manifest with the hash of each file. The `keep`
    latest checkpoints and that of the lowest validation loss are kept. Arrays are restored to the present devices,
    which may differ from those that saved them. If there are several processes, all of them must make the same calls.
    Checkpoints can be read while another process trains in the run directory, and saves and deletes checkpoints.

    Args:
        folder: the folder `checkpoints` of a run directory.
        keep: the number of latest checkpoints to keep.
        read_only: whether nothing will be saved.
    """

    def __init__(self, folder: Path, keep: int = 1, read_only: bool = False) -> None:
        self.folder, self.keep = folder, keep
        self.last_saved: int | None = None
        self._saved: dict[str, Any] = {}
        """The shapes and types of the items that are being saved."""
        self._writer: ocp.AsyncCheckpointer | None = None
        if not read_only:
            processes.from_first(self._prepare)
            handler = ocp.CompositeCheckpointHandler(
                "params", "ema", "optimizer", "progress", metrics=ocp.JsonCheckpointHandler("metrics")
            )
            options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
            self._writer = ocp.AsyncCheckpointer(handler, async_options=options)

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, damaged ones included, in increasing order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the lowest validation loss."""
        return next(iter(self._by_loss()), None)

    def intact_steps(self) -> list[int]:
        """The steps of the checkpoints that are intact, in increasing order."""
        return [step for step in self.steps if self._damage(step) is None]

    def latest_intact(self) -> int | None:
        """The latest step whose checkpoint is intact, or None if there is no checkpoint. Warns of later damaged ones.

        Raises:
            UserError: all checkpoints are damaged.
        """
        return processes.from_first(lambda: self._first_intact(lambda: self.steps[::-1]))

    def resolve(self, step: Step) -> int:
        """Finds the step of a checkpoint.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        if step == "best":
            best = processes.from_first(lambda: self._first_intact(self._by_loss))
            if best is None:
                raise UserError(
                    f"{self.folder} holds no checkpoint with a validation loss; name a step, or train with "
                    "--train.checkpoint-every a multiple of --train.evaluate-every"
                )
            return best
        if step is None:
            latest = self.latest_intact()
            if latest is None:
                raise UserError(
                    f"{self.folder} holds no checkpoint; train at least until the first --train.checkpoint-every"
                )
            return latest
        if step not in (saved := self.steps):
            steps = ", ".join(map(str, saved)) or "none"
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        if damage := processes.from_first(lambda: self._damage(step)):
            raise UserError(f"the checkpoint of step {step} is damaged: {damage}; restore it, or name another step")
        return step

    def save(self, state: TrainState, progress: Progress, loss: float | None = None) -> None:
        """Starts to save the state after `progress.step` steps, in the background.

        Args:
            loss: the validation loss of this step, if it was evaluated.

        Raises:
            OSError: the previous save failed, because the disk is full for example. The failure of the last save is
                raised by `wait`.
        """
        state = devices.global_view(state)
        trees = {"params": state.params, "optimizer": state.opt_state, "ema": state.ema}
        arrays = {name: tree for name, tree in trees.items() if tree is not None}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items["progress"] = ocp.args.JsonSave(progress.to_json())
        if loss is not None and math.isfinite(loss):
            items["metrics"] = ocp.args.JsonSave({"loss": loss})
        self.wait()  # so that `_seal` knows what is being saved
        assert self._writer is not None, "these checkpoints are read-only"
        self.last_saved = progress.step
        self._saved = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        with _full_disk_as_os_error(self.folder):
            self._writer.save(self._path(progress.step).absolute(), args=ocp.args.Composite(**items), force=True)

    def add_loss(self, step: int, loss: float) -> None:
        """Adds the validation loss to the checkpoint of a step. Without effect if the loss is not finite."""
        if math.isfinite(loss):
            write_atomic(self._path(step) / "metrics" / "metrics", json.dumps({"loss": loss}))

    def restore(self, like: TrainState, step: Step = None) -> tuple[TrainState, Progress]:
        """Restores the state and the progress of a step, by default of the latest intact checkpoint.

        Args:
            like: a state with the expected shapes and types.

        Raises:
            UserError: the checkpoint is missing, damaged, or of another model.
        """
        items = {"params": like.params, "optimizer": like.opt_state}
        if like.ema is not None:
            items["ema"] = like.ema
        restored, step = self._restore(step, items)
        progress = Progress.from_json(restored["progress"])
        self.last_saved = step
        state = TrainState(
            step=devices.put_replicated(jnp.asarray(progress.step, jnp.int32)),
            params=restored["params"],
            opt_state=restored["optimizer"],
            ema=restored.get("ema"),
        )
        return state, progress

    def restore_weights(self, params_like: Any, use_ema: bool, step: Step = None) -> tuple[Any, int]:
        """Restores the weights for evaluation and sampling. Returns them and their step.

        Args:
            params_like: parameters with the expected shapes and types.
            use_ema: whether to restore the moving average of the parameters.

        Raises:
            UserError: the checkpoint is missing, damaged, or of another model.
        """
        name = "ema" if use_ema else "params"
        restored, step = self._restore(step, {name: params_like})
        return restored[name], step

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints after `step`, because training from `step` saves them again.

        They are damaged, or, in a sweep, other seeds of the configuration lack them.
        """
        processes.from_first(lambda: self._delete(later for later in self.steps if later > step))

    def wait(self) -> None:
        """Waits until the last save has reached the disk, and removes the checkpoints that are not kept."""
        if self._writer is None:
            return
        with _full_disk_as_os_error(self.folder):
            self._writer.wait_until_finished()
        if self._saved and processes.is_first():
            self._saved = {}
            kept = {*self.steps[-self.keep :], self.best}
            self._delete(step for step in self.steps if step not in kept)

    def close(self) -> None:
        """Waits for the last save and stops the writer."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _prepare(self) -> None:
        """Makes the folder, and removes the remains of interrupted saves and deletions."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if ".orbax-checkpoint-tmp" in path.name or path.name.endswith(_DELETED):
                shutil.rmtree(path)

    def _delete(self, steps: Iterable[int]) -> None:
        for path in [self._path(step) for step in steps]:
            # Renamed first, so that no reader finds an incomplete checkpoint.
            shutil.rmtree(path.rename(path.with_suffix(_DELETED)))

    def _seal(self) -> None:
        # Orbax calls this before it gives the folder its final name, so every checkpoint has a manifest.
        [unfinished] = self.folder.glob(f"{self.last_saved}.orbax-checkpoint-tmp*")
        for name, like in self._saved.items():
            if reason := _misfit(unfinished / name, like):
                raise UserError(
                    f"the checkpoint of step {self.last_saved} was written to {self.folder} and cannot be read back "
                    f"({reason}), so it is not kept; try another --run-dir"
                )
        manifest.seal(unfinished)

    def _damage(self, step: int) -> str | None:
        return manifest.damage(self._path(step))

    def _by_loss(self) -> list[int]:
        """The steps that have a validation loss, ordered from the lowest loss to the highest."""
        losses = {step: loss for step in self.steps if (loss := self._loss(step)) is not None}
        return sorted(losses, key=losses.__getitem__)

    def _loss(self, step: int) -> float | None:
        try:
            loss = json.loads((self._path(step) / "metrics" / "metrics").read_text(encoding="utf-8"))["loss"]
            return loss if isinstance(loss, float) and math.isfinite(loss) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the step was not evaluated, or is damaged
            return None

    def _first_intact(self, listed: Callable[[], list[int]]) -> int | None:
        """The first intact checkpoint of the listed steps. Warns of each damaged one before it."""
        damages: list[str] = []
        steps = listed()
        while steps:
            step = steps.pop(0)
            damage = self._damage(step)
            if damage is None:
                for line in damages:
                    display.warn(f"{line}: the checkpoint of step {step} is used instead")
                return step
            damages.append(damage)
            if not self._path(step).exists():  # a running training deleted it, and saved newer ones
                damages, steps = [], listed()
        if damages:
            raise UserError(
                f"no checkpoint in {self.folder} is intact: {'; '.join(damages)}; restore the folder from a copy, or "
                "train from scratch in another --run-dir"
            )
        return None

    def _restore(self, step: Step, items: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Reads the items and the progress of a checkpoint. Returns them by name, and its step.

        Args:
            items: for each item, a tree with the expected shapes and types.
        """
        while True:
            chosen = self.resolve(step)
            try:
                return self._read(chosen, items), chosen
            except UserError:
                if chosen == step or self._path(chosen).exists():
                    raise
                # A running training deleted the checkpoint in the meantime, and saved newer ones.

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        folder = self._path(step)
        for name, like in items.items():
            # Orbax would find the difference only while it reads, and print tracebacks of its threads.
            if name != "optimizer" and (reason := _misfit(folder / name, like)):
                raise UserError(
                    f"{folder} does not fit its run's config.json: {reason}; restore the folder or train from scratch"
                )
        try:
            read: dict[str, Any] = {"progress": json.loads((folder / "progress" / "metadata").read_text("utf-8"))}
            with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as reader:
                for name, like in items.items():
                    read[name] = reader.restore((folder / name).absolute(), args=_restore_args(like))
            return read
        except Exception as error:  # Orbax raises Exception itself, too
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{folder} does not fit its run's config.json, is damaged, or was saved by another version of "
                f"minigpt_jax ({reason}); restore the folder or train from scratch"
            ) from error


def _misfit(folder: Path, like: Any) -> str | None:
    """Describes the first array whose shape on disk differs from that in `like`, or which is missing in one of them."""
    if not (folder / "manifest.ocdbt").is_file():
        return f"{folder} has no index"
    try:
        metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder.absolute()))
    except Exception:  # Orbax raises Exception itself, too
        return f"{folder} cannot be read"
    shapes = [_shapes(tree) for tree in (getattr(metadata, "tree", metadata), like)]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        saved, wanted = (f"{shape[path]}" if path in shape else "missing" for shape in shapes)
        if saved != wanted:
            return f"{path} is {saved} on disk, and {wanted} by the configuration"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


@contextlib.contextmanager
def _full_disk_as_os_error(folder: Path) -> Iterator[None]:
    """Raises an OSError for the various exceptions by which the writers report a full disk."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder)) from error
        raise


def _restore_args(like: Any) -> ocp.args.StandardRestore:
    sharding = devices.replicated()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    return ocp.args.StandardRestore(abstract)
