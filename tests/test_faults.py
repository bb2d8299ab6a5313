"""Faults: kills at any moment, damaged checkpoints and lost processes. They do not change the result of a run."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import machine
import numpy as np
import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax.errors import UserError
from minigpt_jax.storage import manifest
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.trial.run import Result, run

HEAD = "import sys\nsys.path.insert(0, {tests!r})\nfrom tiny_experiment import EXPERIMENT as experiment\n"


def figures(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl without the figures that depend on the clock."""
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(RunDir(run_dir))]


def assert_same_state(one: Result, other: Result) -> None:
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(a, b)


def command(file: Path, run_dir: Path, *flags: object, devices: int = 1) -> subprocess.Popen[str]:
    """A training process, started as by a user."""
    file.write_text(HEAD.format(tests=str(Path(__file__).parent)))
    words = ["train", file, "--run-dir", run_dir, *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "minigpt_jax", *map(str, words)],
        env=machine.environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An undisturbed run with checkpoints at steps 4, 8 and 12."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, run(changed("train", checkpoint_every=4, keep_checkpoints=3), path)


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("how", ["flipped", "missing", "cut"])
def test_a_manifest_names_the_damaged_file(tmp_path: Path, how: str):
    (tmp_path / "params" / "d").mkdir(parents=True)
    for name in ("params/a", "params/d/b"):
        (tmp_path / name).write_bytes(name.encode())
    assert manifest.damage(tmp_path) == f"{tmp_path / manifest.NAME} is missing"
    manifest.seal(tmp_path)
    assert manifest.damage(tmp_path) is None
    spoil(tmp_path / "params" / "d" / "b", how)
    assert str(tmp_path / "params" / "d" / "b") in str(manifest.damage(tmp_path))


@pytest.mark.parametrize("how", ["flipped", "no manifest"])
def test_the_checkpoint_before_a_damaged_one_is_used_instead(
    whole: tuple[Path, Result], tmp_path: Path, capsys: pytest.CaptureFixture, how: str
):
    path = shutil.copytree(whole[0], tmp_path / "run")
    last = path / "checkpoints" / "12"
    file = last / manifest.NAME if how == "no manifest" else largest(last)
    spoil(file, "missing" if how == "no manifest" else how)
    with pytest.raises(UserError, match="step 12 is damaged"):
        Checkpoints(path / "checkpoints", read_only=True).restore(whole[1].state, step=12)
    result = run(changed("train", checkpoint_every=4, keep_checkpoints=3), path)
    warned = capsys.readouterr().err
    assert str(file) in warned
    assert "step 8 is used instead" in warned
    assert_same_state(result, whole[1])
    assert figures(path) == figures(whole[0])
    assert Checkpoints(path / "checkpoints", read_only=True).latest_intact() == 12  # the checkpoint was saved again


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_not_changed(whole: tuple[Path, Result], tmp_path: Path):
    path = shutil.copytree(whole[0], tmp_path / "run")
    for step in (4, 8, 12):
        spoil(largest(path / "checkpoints" / str(step)), "flipped")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact") as refused:
        run(EXPERIMENT, path)
    assert "\n" not in str(refused.value)
    assert {"4", "8", "12"} <= {entry.name for entry in (path / "checkpoints").iterdir()}


def test_resume_always_and_never(whole: tuple[Path, Result], tmp_path: Path):
    with pytest.raises(UserError, match=r"--resume never: .* already holds checkpoints"):
        run(EXPERIMENT, whole[0], resume="never")
    with pytest.raises(UserError, match=r"--resume always: .* holds no checkpoint"):
        run(EXPERIMENT, tmp_path / "new", resume="always")
    assert not (tmp_path / "new").exists()
    assert run(EXPERIMENT, whole[0], resume="always").progress.step == 12


def kill_again_and_again(tmp_path: Path, kills: int, seed: int) -> None:
    """Kills a training process at random moments, so many times, and then lets it finish."""
    draw = random.Random(seed)
    flags = ["--train.steps", 60, "--train.checkpoint-every", 2, "--train.evaluate-every", 6, "--train.log-every", 5]
    once = command(tmp_path / "e.py", tmp_path / "once", *flags)
    begun = time.monotonic()
    assert once.communicate(timeout=600)[0] is not None
    life = time.monotonic() - begun
    assert once.returncode == 0
    path = tmp_path / "killed"
    done = 0
    while done < kills:
        process = command(tmp_path / "e.py", path, *flags)
        if done % 2:  # half of the kills come soon after a new checkpoint, during steps, evaluations and saves
            before = {entry.name for entry in (path / "checkpoints").glob("*")}
            while process.poll() is None and {entry.name for entry in (path / "checkpoints").glob("*")} <= before:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.2))
        else:
            time.sleep(draw.uniform(0, life))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            shutil.rmtree(path)  # the run had finished, so it starts again from scratch
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += 1
    last = command(tmp_path / "e.py", path, *flags)
    said = last.communicate(timeout=600)[0]
    assert last.returncode == 0, said
    assert "warning" not in said  # a kill damages no checkpoint
    assert figures(path) == figures(tmp_path / "once")
    samples = sorted(file.name for file in (tmp_path / "once" / "samples").iterdir())
    assert sorted(file.name for file in (path / "samples").iterdir()) == samples
    for name in samples:
        assert (path / "samples" / name).read_text() == (tmp_path / "once" / "samples" / name).read_text()
    one, other = (run(changed("train", steps=60), tmp_path / name) for name in ("once", "killed"))
    assert_same_state(one, other)


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_result(tmp_path: Path):
    kill_again_and_again(tmp_path, kills=20, seed=0)


def start_processes(
    tmp_path: Path,
    run_dir: Path,
    count: int,
    *flags: object,
    devices: int = 1,
    started: Sequence[int] | None = None,
) -> list:
    """Starts the processes of a run of `count` processes whose indices are in `started`. The default is all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = ["--distributed.coordinator", address, "--distributed.num-processes", count]
    return [
        command(tmp_path / f"{i}.py", run_dir, *flags, *common, "--distributed.process-id", i, devices=devices)
        for i in (range(count) if started is None else started)
    ]


def ends(processes: list) -> list[tuple[int, str]]:
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_run(tmp_path: Path, count: int):
    """They stop together, resume with another number of processes, and equal one process with as many devices."""
    several = [status for status, _ in ends(start_processes(tmp_path, tmp_path / "several", count))]
    assert several == [0] * count
    [(status, _)] = ends([command(tmp_path / "one.py", tmp_path / "one", devices=count)])
    assert status == 0
    ours, theirs = figures(tmp_path / "several"), figures(tmp_path / "one")
    assert [(line["step"], line["split"]) for line in ours] == [(line["step"], line["split"]) for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    [(status, output)] = ends([command(tmp_path / "one.py", tmp_path / "several", "--train.steps", 14)])
    assert status == 0
    assert "resuming from step 12" in output


LONG = ["--train.steps", 100_000, "--train.checkpoint-every", 10, "--train.evaluate-every", 100_000]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_with_one_line_after_a_process_is_lost(tmp_path: Path, lost: int):
    processes = start_processes(tmp_path, tmp_path / "run", 2, *LONG)
    wait_for(tmp_path / "run" / "checkpoints" / "10", processes[0])
    processes[lost].kill()
    status, output = ends(processes)[1 - lost]
    assert status == 1
    assert output.splitlines()[-1].startswith("minigpt: another process of this run was lost")
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).latest_intact() is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "says"),
    [
        ([0], "not all 3 processes of this run joined within 5 s"),
        ([1], "cannot be reached within 5 s (--distributed.wait-seconds): Connection refused"),
        ([0, 1], "not all 3 processes of this run joined within 5 s"),
        ([0, 1, 1], "the processes of this run cannot join each other"),
    ],
)
def test_processes_that_do_not_find_each_other_end_with_one_line(tmp_path: Path, started: list[int], says: str):
    flags = ["--distributed.wait-seconds", 5]
    ended = ends(start_processes(tmp_path, tmp_path / "run", 3, *flags, started=started))
    assert {status for status, _ in ended} == {2}
    assert any(says in output for _, output in ended)
    for _, output in ended:
        [line] = output.splitlines()
        assert line.startswith("minigpt: ")
        assert "--distributed.coordinator localhost:" in line


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path):
    processes = start_processes(tmp_path, tmp_path / "run", 2, *LONG)
    wait_for(tmp_path / "run" / "checkpoints" / "10", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    (first, said), (second, also_said) = ends(processes)
    assert (first, second) == (130, 130)
    assert said.splitlines()[-1] == also_said.splitlines()[-1]
    step = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).latest
    assert f"stopped at step {step}," in said
    assert json.loads((tmp_path / "run" / "checkpoints" / str(step) / manifest.NAME).read_text())["sha256"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--distributed.process-id", 0], "--distributed.coordinator and --distributed.num-processes are missing"),
        (
            ["--distributed.coordinator", "here", "--distributed.num-processes", 2, "--distributed.process-id", 0],
            "HOST",
        ),
        (
            ["--distributed.coordinator", "a:99999", "--distributed.num-processes", 2, "--distributed.process-id", 0],
            "--distributed.coordinator a:99999: must be HOST:PORT",
        ),
        (
            ["--distributed.coordinator", "a:²", "--distributed.num-processes", 2, "--distributed.process-id", 0],
            "must be HOST:PORT",
        ),
        (
            ["--distributed.coordinator", "a..b:1", "--distributed.num-processes", 2, "--distributed.process-id", 1],
            "--distributed.coordinator a..b:1: no host can have this name",
        ),
        (
            ["--distributed.coordinator", "a:1", "--distributed.num-processes", 0, "--distributed.process-id", 0],
            "--distributed.num-processes 0: must be 1 or more",
        ),
        (
            ["--distributed.coordinator", "a:1", "--distributed.num-processes", 2, "--distributed.process-id", 2],
            "0 and 1",
        ),
        (["--distributed.wait-seconds", 0], "--distributed.wait-seconds 0: must be at least 1"),
    ],
)
def test_invalid_flags_of_processes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture, flags: list, says: str):
    from minigpt_jax.cli import main

    (tmp_path / "e.py").write_text(HEAD.format(tests=str(Path(__file__).parent)))
    assert main(["train", str(tmp_path / "e.py"), "--run-dir", str(tmp_path / "r"), *map(str, flags)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
