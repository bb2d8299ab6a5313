"""Data parallelism over devices and processes. This is the only module that calls `pmap`.

Every device holds the whole state and computes on its part of the rows of each batch. On a single device, programs are
compiled by `jit`.
"""

import collections
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import joblib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minigpt_jax.errors import UserError
from minigpt_jax.ops.platform import on_cpu

AXIS = "devices"
STEPS_PER_EXECUTION = 16


def use_all_cores() -> None:
    """Makes each core that this process may use a JAX device, up to 8.

    It does nothing if JAX does not compute on the CPU, or if the user has chosen otherwise. It is for work that devices
    do independently: the matrices of a small model leave cores idle. It has to be called before JAX is first used.
    """
    chosen: int = jax.config.values["jax_num_cpu_devices"]
    if chosen < 0 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(joblib.cpu_count(), 8))


def check_types() -> None:
    """Raises UserError if JAX is set to use 64-bit types, which the models do not support."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            "JAX_ENABLE_X64 is on, but minigpt_jax trains and samples in float32 or bfloat16: unset it, or call "
            "minigpt_jax under `with jax.enable_x64(False):`"
        )


def axis_name() -> str | None:
    """The name of the mapped axis that a program sums over, or None on a single device."""
    return AXIS if jax.device_count() > 1 else None


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Checks that the rows of a batch can be divided evenly among the devices and micro-batches.

    Raises:
        UserError: they cannot; the message names the nearest sizes that can.
    """
    share = jax.device_count() * accumulate
    if batch_size % share:
        below = batch_size - batch_size % share
        nearest = " or ".join(str(size) for size in (below, below + share) if size)
        micro = f" and --train.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"--train.batch-size {batch_size}: must be divisible by the {jax.device_count()} devices{micro}; "
            f"use {nearest}"
        )


def compile(function: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
    """Compiles `function(state, batch, *others)` for all devices.

    `batch` has to come from `put_batch`. All other arguments, and the result, are the same on all devices. Where
    `function` reduces over rows, it must itself sum over `axis_name()`. With `donate`, the result reuses the memory of
    the state.
    """
    donated = (0,) if donate else ()
    if jax.device_count() == 1:
        return jax.jit(function, donate_argnums=donated)

    def call(state: Any, batch: Any, *others: Any) -> Any:
        out = mapped(len(others))(state, batch, *others)
        if on_cpu():
            # Simulated devices share a few threads. If programs were queued, the collectives could not get a thread.
            jax.block_until_ready(out)
        return out

    programs: dict[int, Callable[..., Any]] = {}

    def mapped(others: int) -> Callable[..., Any]:
        if others not in programs:
            in_axes = (None, 0) + (None,) * others
            programs[others] = jax.pmap(function, AXIS, in_axes=in_axes, out_axes=None, donate_argnums=donated)
        return programs[others]

    return call


def compile_rows(
    function: Callable[..., Any],
    in_axes: tuple[int | None, ...],
    donate: tuple[int, ...] = (),
    devices: int | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """Compiles a function of independent rows, so that each device computes its part of the rows independently.

    The result is split by device; `join_rows` joins it.

    Args:
        function: the function to compile.
        in_axes: 0 for each argument that is split by device, made by `split_rows` or by a function compiled here, and
            None for each one that is the same for all devices.
        donate: the indices of the arguments whose memory the result may reuse.
        devices: how many of this process's devices to use, here as in `split_rows` and `join_rows`; by default all.
        options: options for the compiler, which are used only on a single device.
    """
    devices = devices or local_devices()
    if devices == 1:
        return jax.jit(function, donate_argnums=donate, compiler_options=options or None)
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices()[:devices], donate_argnums=donate)


def steps_per_execution(periods: Iterable[int]) -> int:
    """The default number of steps per call of the compiled program: 1 on CPU, where calls are cheap.

    On accelerators it is the largest number up to `STEPS_PER_EXECUTION` that divides all periods at which hooks need
    the state between steps, so that one compiled program suffices.
    """
    if on_cpu():
        return 1
    common = math.gcd(*periods)
    return max(size for size in range(1, STEPS_PER_EXECUTION + 1) if common % size == 0)


def local_copy(tree: Any) -> Any:
    """This process's copy of a replicated tree, for programs that the other processes do not run."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def global_view(tree: Any) -> Any:
    """Turns the result of a compiled program into arrays over the devices of all processes, as Orbax requires."""
    if jax.process_count() == 1:
        return tree

    def view(x: jax.Array) -> jax.Array:
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, replicated(), shards)

    return jax.tree.map(view, tree)


def local_devices() -> int:
    """The number of devices of this process."""
    return jax.local_device_count()


def split_rows(tree: Any, devices: int | None = None) -> Any:
    """Adds a leading axis of devices if there is more than one. The number of rows has to be a multiple of them."""
    devices = devices or local_devices()
    return tree if devices == 1 else jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)


def join_rows(tree: Any, devices: int | None = None) -> Any:
    """The inverse of `split_rows`; the result is on the host."""
    tree = jax.device_get(tree)
    return tree if (devices or local_devices()) == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def put_batch(batch: Any, row_axis: int = 0) -> Any:
    """Starts to copy this process's rows to its devices, each of which gets a part of the axis `row_axis`."""
    devices = jax.local_devices()
    if jax.device_count() == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))

    def split(x: np.ndarray) -> Any:
        parts = x.reshape(*x.shape[:row_axis], len(devices), -1, *x.shape[row_axis + 1 :])
        return jax.device_put(np.moveaxis(parts, row_axis, 0), sharding)

    return jax.tree.map(split, batch)


def put_replicated(tree: Any) -> Any:
    """Copies a tree to all devices, with the sharding that results of compiled programs have."""
    if jax.device_count() == 1:
        return jax.device_put(tree)
    return jax.device_put(tree, replicated())


def replicated() -> jax.sharding.Sharding:
    """The sharding of arrays of which every device holds a whole copy."""
    if jax.device_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())


def prefetch(items: Iterable[Any], size: int = 2) -> Iterator[Any]:
    """Draws items ahead of their use, so that copies to a device that they have started overlap with compute."""
    items = iter(items)
    queue = collections.deque(itertools.islice(items, size))
    while queue:
        item = queue.popleft()
        queue.extend(itertools.islice(items, 1))
        yield item
