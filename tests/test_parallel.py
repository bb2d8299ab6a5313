"""Training on several devices is training on one; each number of devices has a process of its own."""

import functools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import machine
import numpy as np
import pytest

from minigpt_jax.errors import UserError
from minigpt_jax.parallel import devices

PROGRAM = """
import functools, json, sys
import jax, numpy as np
if sys.argv[1:]:  # this process's number, and where to meet the other
    jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
from minigpt_jax.data.batch import Batch
from minigpt_jax.config import ModelConfig, OptimizerConfig
from minigpt_jax.model import GPT
from minigpt_jax.parallel import devices
from minigpt_jax.train import optim
from minigpt_jax.train.step import StepSpec, eval_step, init_state, train_step, train_steps

STEPS, B, T, V = 20, 16, 8, 50
rng = np.random.default_rng(0)
lengths = rng.integers(1, T + 1, (STEPS, B))  # so that no two devices hold as many labels
lengths[:, -6:] = -1  # rows of padding: on four devices, one has nothing else
rows = rng.integers(3, V, (STEPS, B, T + 1))
rows = np.where(np.arange(T + 1) <= lengths[..., None], rows, 0).astype(np.uint16)
batches = Batch(rows, np.maximum(lengths, 0).astype(np.int32), (lengths + 1).astype(np.int32))
share = B // jax.process_count()
batches = jax.tree.map(lambda x: x[:, share * jax.process_index() :][:, :share], batches)
batch = lambda i: jax.tree.map(lambda x: x[i], batches)

config = OptimizerConfig(learning_rate=0.01, clip_norm=1.0, ema_decay=0.9)
hyper, key = optim.hyperparameters(config, STEPS), jax.random.key(0)
model = GPT(ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=16), V, T)

def trainer(accumulate=1):
    return StepSpec(model, config, True, accumulate, devices.axis_name())

@functools.partial(jax.jit, static_argnums=0)
def fresh(spec):
    return init_state(spec, hyper, jax.random.key(1))

def gone(state):  # was the memory given away?
    return all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))

def compiled(step, accumulate=1):
    return devices.compile(functools.partial(step, trainer(accumulate)), donate=True)

out = {"devices": jax.device_count()}
start = devices.put_replicated(fresh(trainer()))
evaluate = devices.compile(functools.partial(eval_step, model, axis_name=devices.axis_name()))

state, losses, norms = start, [], []
step = compiled(train_step)
for i in range(STEPS):
    state, metrics = step(state, devices.put_batch(batch(i)), hyper, key)
    losses.append(float(metrics.objective)); norms.append(float(metrics.grad_norm))
out |= {"losses": losses, "norms": norms, "donated": gone(start), "labels": int(metrics.sums.tokens)}
out["evaluation"] = [float(x) for x in evaluate(state.weights, devices.put_batch(batch(0)))]
out["kept"] = not gone(state)  # evaluation donates nothing

modern = ModelConfig(1, 16, 2, feed_forward=16, tied_embeddings=True, convolution=3, head_gate=True, pointer=8)
modern = GPT(modern, V, T, jax.numpy.bfloat16)
half = StepSpec(modern, OptimizerConfig("normuon"), True, 1, devices.axis_name())
state = devices.put_replicated(fresh(half))
step, out["half"] = devices.compile(functools.partial(train_step, half), donate=True), []
for i in range(4):
    state, metrics = step(state, devices.put_batch(batch(i)), hyper, key)
    out["half"].append(float(metrics.objective))

several = compiled(train_steps)
state = devices.put_replicated(fresh(trainer()))
losses = []
for i in range(0, STEPS, 5):
    together = jax.tree.map(lambda x: x[i : i + 5], batches)
    state, metrics = several(state, devices.put_batch(together, row_axis=1), hyper, key)
    losses += np.asarray(metrics.objective).tolist()
out["scanned"] = losses
out["step"] = int(state.step)

state = devices.put_replicated(fresh(trainer()))
_, metrics = compiled(train_step, accumulate=2)(state, devices.put_batch(batch(0)), hyper, key)
out["accumulated"] = [float(metrics.objective), float(metrics.grad_norm)]

dropping = GPT(ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=16, dropout=0.3), V, T)
for accumulate in (1, 2):
    one = StepSpec(dropping, config, True, accumulate, devices.axis_name())
    state = devices.put_replicated(fresh(one))
    step, losses = devices.compile(functools.partial(train_step, one), donate=True), []
    for i in range(4):
        state, metrics = step(state, devices.put_batch(batch(i)), hyper, key)
        losses.append(float(metrics.objective))
    out[f"dropped by {accumulate}"] = losses
print(json.dumps(out))
"""


def launch(devices: int, *arguments: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-c", PROGRAM, *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=machine.environment(devices), stdout=pipe, stderr=pipe, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "donated" not in errors, errors  # JAX warns of donated buffers that it cannot use
    return json.loads(output.splitlines()[-1])


@functools.cache
def trained(devices: int) -> Any:
    return result(launch(devices))


close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_losses_are_independent_of_the_number_of_devices(devices: int) -> None:
    """Over twenty steps, whatever device a row is on; sums over counts, as no device holds its fair share."""
    one, many = trained(1), trained(devices)
    assert many["devices"] == devices
    assert one["losses"][0] - one["losses"][-1] > 0.1
    close(many["losses"], one["losses"])
    close(many["norms"], one["norms"], rtol=1e-4)
    close(many["evaluation"], one["evaluation"])
    close(many["half"], one["half"], rtol=2e-3)  # by NorMuon in bfloat16
    assert many["labels"] == one["labels"]


@pytest.mark.slow
def test_two_processes_of_two_devices_are_four_devices() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [launch(2, str(i), address) for i in range(2)]
    try:
        for got in map(result, processes):
            assert got["devices"] == 4
            for name in ("losses", "scanned", "evaluation", "accumulated", "dropped by 1", "dropped by 2"):
                close(got[name], trained(4)[name])
    finally:
        for process in processes:  # one waits for the other
            process.kill()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_several_steps_per_execution_divide_the_rows_among_devices(devices: int) -> None:
    close(trained(devices)["scanned"], trained(1)["losses"])
    assert trained(devices)["step"] == 20


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_accumulation_on_devices_is_one_batch(devices: int) -> None:
    """With eight devices a micro-batch is one row each, and six of the sixteen are empty."""
    close(trained(devices)["accumulated"], [trained(1)["losses"][0], trained(1)["norms"][0]])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_dropout_masks_are_independent_of_devices_and_micro_batches(devices: int, accumulate: int) -> None:
    """A mask drawn for each device would move these losses by some 0.1."""
    close(trained(devices)[f"dropped by {accumulate}"], trained(1)["dropped by 1"])
    assert abs(trained(1)["dropped by 1"][0] - trained(1)["losses"][0]) > 1e-3


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_donating_reuses_the_memory_of_the_state(devices: int) -> None:
    assert trained(devices)["donated"]
    assert trained(devices)["kept"]


@pytest.mark.parametrize(
    ("count", "accumulate", "batch_size", "nearest"),
    [(4, 1, 10, "8 or 12"), (4, 1, 3, "use 4$"), (8, 1, 63, "56 or 64"), (4, 2, 12, "8 or 16"), (1, 3, 4, "3 or 6")],
)
def test_a_batch_that_does_not_divide_is_refused(
    count: int, accumulate: int, batch_size: int, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: count)
    with pytest.raises(UserError, match=rf"^--train.batch-size {batch_size}: .*{nearest}") as raised:
        devices.check_batch_size(batch_size, accumulate)
    assert "\n" not in str(raised.value)
    assert (f"--train.accumulate {accumulate}" in str(raised.value)) == (accumulate > 1)


@pytest.mark.parametrize(("count", "accumulate", "batch_size"), [(1, 1, 7), (4, 1, 64), (4, 2, 64), (8, 8, 64)])
def test_a_divisible_batch_size_is_accepted(
    count: int, accumulate: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: count)
    devices.check_batch_size(batch_size, accumulate)


@pytest.mark.parametrize("row_axis", [0, 1])
def test_put_batch_divides_rows_in_order(row_axis: int) -> None:
    count = jax.device_count()
    rows = np.arange(2 * count * 2 * count).reshape(2 * count, 2 * count)
    placed = devices.put_batch({"rows": rows}, row_axis)["rows"]
    if count > 1:
        expected = np.moveaxis(rows, row_axis, 0).reshape(count, 2, -1)
        for device, shard in zip(jax.devices(), placed.addressable_shards, strict=True):
            assert shard.device == device
            share = np.moveaxis(np.asarray(shard.data)[0], row_axis, 0)
            np.testing.assert_array_equal(share, expected[device.id])
    else:
        np.testing.assert_array_equal(placed, rows)


def drawn_ahead(size: int, length: int) -> Iterator[tuple[int, int]]:
    """(item, items drawn by then) for each item of a prefetched count."""
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for i in range(length):
            drawn += 1
            yield i

    for item in devices.prefetch(source(), size):
        yield item, drawn


@pytest.mark.parametrize("size", [1, 2, 5])
def test_prefetch_keeps_order_and_draws_ahead(size: int) -> None:
    assert list(drawn_ahead(size, 8)) == [(i, min(i + 1 + size, 8)) for i in range(8)]


@pytest.mark.parametrize("length", [0, 1])
def test_prefetch_of_less_than_its_size(length: int) -> None:
    assert [item for item, _ in drawn_ahead(3, length)] == list(range(length))
