"""Checkpoints by Orbax: saved in the background, verified before they count, and read only if whole still."""

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
from minigpt_jax.train.state import Progress, TrainState

Step = int | Literal["best"] | None
"""Which checkpoint: of that step, of the lowest validation loss, or the latest."""
_DELETED = ".deleted"


class Checkpoints:
    """The checkpoints of a run, a folder for each step.

    A checkpoint has the items `params`, `ema` (if kept), `optimizer`, `progress` and `metrics` (if evaluated), so that
    sampling reads the weights alone, and a manifest of its files' sums. The latest `keep` and the one of the lowest
    validation loss stay. Arrays restore onto whatever devices are here. Where there are several processes, all of them
    make the same calls. Reading works while another process trains here, and writes and deletes checkpoints.
    """

    def __init__(self, folder: Path, keep: int = 1, read_only: bool = False) -> None:
        self.folder, self.keep = folder, keep
        self.last_saved: int | None = None
        self._saved: dict[str, Any] = {}
        """Shapes of the items being saved."""
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
        """The steps that there are checkpoints of, damaged or not, in order."""
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

    def whole_steps(self) -> list[int]:
        """The steps whose files are what was written, in order."""
        return [step for step in self.steps if self._damage(step) is None]

    def newest_whole(self) -> int | None:
        """The latest step whose files are what was written, or None where there is no checkpoint at all.

        Warns of each damaged one on the way. Raises UserError where all of them are damaged.
        """
        return processes.from_first(lambda: self._first_whole(lambda: self.steps[::-1]))

    def resolve(self, step: Step) -> int:
        """The step of the checkpoint that is meant. Raises UserError if there is none, or it is damaged."""
        if step == "best":
            best = processes.from_first(lambda: self._first_whole(self._by_loss))
            if best is None:
                raise UserError(
                    f"{self.folder} holds no checkpoint with a validation loss; name a step, or train with "
                    "--train.checkpoint-every a multiple of --train.evaluate-every"
                )
            return best
        if step is None:
            newest = self.newest_whole()
            if newest is None:
                raise UserError(f"{self.folder} holds no checkpoint; train to the first --train.checkpoint-every")
            return newest
        if step not in (there := self.steps):
            steps = ", ".join(map(str, there)) or "none"
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        if damage := processes.from_first(lambda: self._damage(step)):
            raise UserError(f"the checkpoint of step {step} is damaged: {damage}; restore it, or name another step")
        return step

    def save(self, state: TrainState, progress: Progress, loss: float | None = None) -> None:
        """Starts a save of the state after `progress.step` steps; `loss` is validation's, if it is known.

        An OSError of the save before, such as that of a full disk, is raised here or by `wait`.
        """
        state = devices.global_view(state)
        arrays = {"params": state.params, "optimizer": state.opt_state}
        if state.ema is not None:
            arrays["ema"] = state.ema
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items["progress"] = ocp.args.JsonSave(progress.to_json())
        if loss is not None and math.isfinite(loss):
            items["metrics"] = ocp.args.JsonSave({"loss": loss})
        self.wait()  # so that `_seal` knows what is being saved
        assert self._writer is not None, "opened for reading"
        self.last_saved = progress.step
        self._saved = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        with _full_disk_told(self.folder):
            self._writer.save(self._path(progress.step).absolute(), args=ocp.args.Composite(**items), force=True)

    def restore(self, like: TrainState, step: Step = None) -> tuple[TrainState, Progress]:
        """The state and progress of a step, by default the latest whole one; `like` gives shapes and types.

        Raises UserError where it is missing, damaged, or another model's.
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
        """The weights to sample with, and their step."""
        name = "ema" if use_ema else "params"
        restored, step = self._restore(step, {name: params_like})
        return restored[name], step

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints past `step`, as damaged ones: training from `step` makes the very same ones again."""
        processes.from_first(lambda: self._delete(later for later in self.steps if later > step))

    def wait(self) -> None:
        """Returns once all that was saved is on disk."""
        if self._writer is None:
            return
        with _full_disk_told(self.folder):
            self._writer.wait_until_finished()
        if self._saved and processes.is_first():
            self._saved = {}
            kept = {*self.steps[-self.keep :], self.best}
            self._delete(step for step in self.steps if step not in kept)

    def close(self) -> None:
        """Waits for what was saved, and frees the folder."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _prepare(self) -> None:
        """Makes the folder, without what saves and deletions that were cut short have left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if ".orbax-checkpoint-tmp" in path.name or path.name.endswith(_DELETED):
                shutil.rmtree(path)

    def _delete(self, steps: Iterable[int]) -> None:
        for path in [self._path(step) for step in steps]:
            # Renamed first, so that nobody sees half of a checkpoint.
            shutil.rmtree(path.rename(path.with_suffix(_DELETED)))

    def _seal(self) -> None:
        # Called when all files are written and before the folder gets its final name: no checkpoint lacks a manifest.
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
        """The steps that have a validation loss, the lowest first."""
        losses = {step: loss for step in self.steps if (loss := self._loss(step)) is not None}
        return sorted(losses, key=losses.__getitem__)

    def _loss(self, step: int) -> float | None:
        try:
            loss = json.loads((self._path(step) / "metrics" / "metrics").read_text(encoding="utf-8"))["loss"]
            return loss if isinstance(loss, float) and math.isfinite(loss) else None
        except (OSError, ValueError, KeyError, TypeError):  # not evaluated, or damaged
            return None

    def _first_whole(self, listed: Callable[[], list[int]]) -> int | None:
        """The first of the listed steps that is whole, with a warning of each damaged one before it."""
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
            if not self._path(step).exists():  # the run that trains here has deleted it, and made newer ones
                damages, steps = [], listed()
        if damages:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damages)}; restore the folder from a copy, or "
                "train anew in another --run-dir"
            )
        return None

    def _restore(self, step: Step, items: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The items of a checkpoint and its progress, and its step; `items` gives shapes and types."""
        while True:
            chosen = self.resolve(step)
            try:
                return self._read(chosen, items), chosen
            except UserError:
                if chosen == step or self._path(chosen).exists():
                    raise
                # The run that trains here has deleted it meanwhile, and made newer ones.

    def _read(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        folder = self._path(step)
        for name, like in items.items():
            # Orbax says it only once it reads, and leaves tracebacks of its threads behind.
            if name != "optimizer" and (reason := _misfit(folder / name, like)):
                raise UserError(
                    f"{folder} does not fit its run's config.json: {reason}; restore the folder or train anew"
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
                f"{folder} does not fit its run's config.json, is damaged, or of another version of minigpt_jax "
                f"({reason}); restore the folder or train anew"
            ) from error


def _misfit(folder: Path, like: Any) -> str | None:
    """The first array whose shape on disk is another than in `like`, or that only one of them has."""
    if not (folder / "manifest.ocdbt").is_file():
        return f"{folder} has no index"
    try:
        metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder.absolute()))
    except Exception:  # Orbax raises Exception itself, too
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
    sharding = devices.replicated()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    return ocp.args.StandardRestore(abstract)
