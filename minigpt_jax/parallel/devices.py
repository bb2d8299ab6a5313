"""Devices and processes: data parallelism, in the one module that says `pmap`.

Every device holds the whole state and takes its share of each batch's rows. On one device a program is plainly jitted.
"""

import collections
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minigpt_jax.errors import UserError

AXIS = "devices"
STEPS_PER_DISPATCH = 16


def use_all_cores() -> None:
    """Makes a device of each core, up to 8, where JAX will compute on the CPU and nothing else was asked for.

    For work that devices share out without a word to each other: a small model's matrices leave cores idle. To be
    called before JAX is first used.
    """
    chosen: int = jax.config.values["jax_num_cpu_devices"]
    if chosen < 0 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))


def check_types() -> None:
    """Raises UserError where JAX makes 64-bit arrays, which the models, whose weights are float32, do not expect."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            "JAX_ENABLE_X64 is on, and minigpt_jax trains and samples in float32 or bfloat16: unset it, or call "
            "minigpt_jax under `with jax.enable_x64(False):`"
        )


def axis_name() -> str | None:
    """The axis that a program sums over, or None where there is one device and nothing to sum."""
    return AXIS if jax.device_count() > 1 else None


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError, with the nearest sizes that do, if the rows do not divide by the devices and micro-batches."""
    share = jax.device_count() * accumulate
    if batch_size % share:
        below = batch_size - batch_size % share
        nearest = " or ".join(str(size) for size in (below, below + share) if size)
        micro = f" and --train.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"--train.batch-size {batch_size}: must divide by the {jax.device_count()} devices{micro}; take {nearest}"
        )


def compile(function: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
    """Compiles `function(state, batch, *others)` for all devices.

    `batch` is what `put_batch` made; every other argument and the result are the same on all devices. `function` must
    sum over `axis_name()` itself where its rows meet. `donate` gives the state's memory to the result.
    """
    donated = (0,) if donate else ()
    if jax.device_count() == 1:
        return jax.jit(function, donate_argnums=donated)

    def call(state: Any, batch: Any, *others: Any) -> Any:
        out = mapped(len(others))(state, batch, *others)
        if jax.default_backend() == "cpu":
            # Simulated devices share a few threads: programs queued behind one another starve the collectives.
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
    """Compiles a function whose rows do not depend on one another, to run each device's share on its own.

    An argument whose axis is 0 comes from `split_rows` or from such a function; the others are the same for all. The
    result is split likewise: `join_rows` puts it together. `devices` says how many of this process's take part, here
    and there; all by default. `options` are the compiler's, heeded on one device.
    """
    devices = devices or local_devices()
    if devices == 1:
        return jax.jit(function, donate_argnums=donate, compiler_options=options or None)
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices()[:devices], donate_argnums=donate)


def steps_per_dispatch(periods: Iterable[int]) -> int:
    """How many steps to run by one call where the user does not say: one on CPU, where a call costs little.

    On accelerators as many as divide the periods of whatever looks at the state between steps: one program does.
    """
    if jax.default_backend() == "cpu":
        return 1
    common = math.gcd(*periods)
    return max(size for size in range(1, STEPS_PER_DISPATCH + 1) if common % size == 0)


def local_copy(tree: Any) -> Any:
    """This process's own copy of what all devices hold whole, for programs that other processes do not run."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def global_view(tree: Any) -> Any:
    """What compiled programs return, as arrays of all processes' devices instead of this one's: Orbax wants those."""
    if jax.process_count() == 1:
        return tree

    def view(x: jax.Array) -> jax.Array:
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, replicated(), shards)

    return jax.tree.map(view, tree)


def local_devices() -> int:
    """Devices of this process."""
    return jax.local_device_count()


def split_rows(tree: Any, devices: int | None = None) -> Any:
    """Rows, a multiple of the devices in number, with an axis of devices in front where there are several."""
    devices = devices or local_devices()
    return tree if devices == 1 else jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)


def join_rows(tree: Any, devices: int | None = None) -> Any:
    """The inverse of `split_rows`, on the host."""
    tree = jax.device_get(tree)
    return tree if (devices or local_devices()) == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def put_batch(batch: Any, row_axis: int = 0) -> Any:
    """Starts the copy of this process's rows to its devices; `row_axis` is the axis of rows that they share out."""
    devices = jax.local_devices()
    if jax.device_count() == 1:
        return jax.device_put(batch)
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))

    def split(x: np.ndarray) -> Any:
        shares = x.reshape(*x.shape[:row_axis], len(devices), -1, *x.shape[row_axis + 1 :])
        return jax.device_put(np.moveaxis(shares, row_axis, 0), sharding)

    return jax.tree.map(split, batch)


def put_replicated(tree: Any) -> Any:
    """Copies a tree to all devices, in the layout that compiled programs return it in."""
    if jax.device_count() == 1:
        return jax.device_put(tree)
    return jax.device_put(tree, replicated())


def replicated() -> jax.sharding.Sharding:
    """The sharding of what all devices hold whole."""
    if jax.device_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())


def prefetch(items: Iterable[Any], size: int = 2) -> Iterator[Any]:
    """Draws items ahead of their use, so that copies which they started overlap with compute."""
    items = iter(items)
    queue = collections.deque(itertools.islice(items, size))
    while queue:
        item = queue.popleft()
        queue.extend(itertools.islice(items, 1))
        yield item
