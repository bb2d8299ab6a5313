"""A signal ends a run after its step, with a checkpoint; one that the process ignores does not."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import machine
import pytest
from tiny_experiment import changed

from minigpt_jax.errors import UserError
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.trial.run import run
from minigpt_jax.trial.signals import stop_signals

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from tiny_experiment import changed
from minigpt_jax.trial import open_run
from minigpt_jax.trial.run import run
result = run(changed("train", steps=100_000, checkpoint_every=10_000), {path!r})
print("interrupted", result.interrupted, result.progress.step)
"""


def start(path: Path) -> subprocess.Popen:
    program = PROGRAM.format(tests=str(Path(__file__).parent), path=str(path))
    command = [sys.executable, "-c", program]
    # The tests may run in the background of a script, where SIGINT is ignored.
    heeds = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(command, env=machine.environment(1), stdout=subprocess.PIPE, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while not read_metrics(RunDir(path)):
        assert process.poll() is None, "training ended before its first line"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: int):
    process = start(tmp_path / "run")
    if number == signal.SIGTERM:
        with pytest.raises(UserError, match="another process is training"):
            run(changed("train", steps=100_000, checkpoint_every=10_000), tmp_path / "run")
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    step = int(output.split()[-1])
    assert "interrupted True" in output
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).latest == step


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGINT is in the background of a script, and SIGHUP under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before)
