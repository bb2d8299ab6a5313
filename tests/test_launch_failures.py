"""launch.sh where it cannot install, is interrupted, or is started several times at once."""

import signal
from pathlib import Path

import pytest
from launch_checkout import Checkout, one_line, wait_for


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


# ---- What can go wrong ----


@pytest.mark.parametrize(
    ("stand_ins", "env", "words"),
    [
        (["python3"], {"FAKE_PYTHON": "3.9"}, ["3.11 to 3.13", "python3 is 3.9"]),
        (["python3"], {"FAKE_PYTHON": "3.14"}, ["3.11 to 3.13", "python3 is 3.14"]),
        (["python"], {"FAKE_PYTHON": "2.7"}, ["3.11 to 3.13", "python is 2.7"]),
        ([], {}, ["3.11 to 3.13", "no python3 on PATH"]),
        (["python3"], {"FAKE_NO_ENSUREPIP": "1"}, ["python3.12-venv"]),
        (["python3", "uv"], {"PYTHON": "/no/such/python"}, ["PYTHON=/no/such/python"]),
        (["python3", "python3.9", "uv"], {"PYTHON": "python3.9", "FAKE_PYTHON": "3.9"}, ["python3.9 is 3.9"]),
    ],
)
def test_no_python_that_fits(checkout: Checkout, stand_ins: list[str], env: dict[str, str], words: list[str]) -> None:
    checkout.have(*stand_ins)
    status, _, err = checkout.run("x.py", **env)
    assert status == 2
    for word in words:
        assert word in one_line(err)
    assert not (checkout.root / ".venv").exists()
    assert not checkout.lock.exists()


def test_uv_may_bring_a_python(checkout: Checkout) -> None:
    checkout.have("uv")
    status, _, err = checkout.run("x.py", FAKE_FAILURE="error: no route to host")
    assert (status, "no route to host" in one_line(err)) == (2, True)
    assert checkout.run("x.py")[0] == 0
    (checkout.root / ".venv").rename(checkout.folder / "old")
    status, _, err = checkout.run("x.py", FAKE_NO_VENV="1")
    assert (status, "3.11 to 3.13" in one_line(err)) == (2, True)


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_failed_installation(checkout: Checkout, tool: str) -> None:
    checkout.have("python3", *(["uv"] if tool == "uv" else []))
    for _ in range(2):
        status, told, err = checkout.run("x.py", FAKE_FAILURE="ERROR: no route\n  to host")
        assert (status, told) == (2, {})
        assert "ERROR: no route to host" in one_line(err)
        assert str(checkout.log) in err
        assert "Resolving" in checkout.log.read_text()
    (checkout.root / ".venv/half").touch()
    assert not checkout.whole()
    assert checkout.run("x.py")[0] == 0
    assert not (checkout.root / ".venv/half").exists()
    assert checkout.whole()


@pytest.mark.parametrize("touched", [False, True])
def test_failed_update(checkout: Checkout, touched: bool) -> None:
    checkout.run("x.py")
    packages = checkout.root / ".venv/lib/python3.12/site-packages"
    (packages / "jax-0.10.2.dist-info").touch()
    checkout.edit()
    touches = {"FAKE_TOUCHES": str(packages / "jax-0.11.0.dist-info")} if touched else {}
    assert checkout.run("x.py", FAKE_FAILURE="error: no route to host", **touches)[0] == 2
    assert not checkout.whole()
    checkout.edit("[project]\n", "[project]")  # thought better of
    assert checkout.whole() != touched


@pytest.mark.parametrize(("sent", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_installation(checkout: Checkout, sent: signal.Signals, expected: int) -> None:
    process = checkout.start("x.py", FAKE_SECONDS="60")
    wait_for(checkout.calls)
    process.send_signal(sent)
    process.communicate(timeout=10)  # nor does it wait for the installer
    assert process.returncode == expected
    assert not checkout.lock.exists()
    assert not checkout.whole()
    assert checkout.run("x.py")[0] == 0
    assert checkout.whole()


def test_read_only_checkout(checkout: Checkout) -> None:
    (checkout.bin / "mkdir").unlink()
    (checkout.bin / "mkdir").write_text("#!/usr/bin/env bash\necho mkdir: Read-only file system >&2\nexit 1\n")
    (checkout.bin / "mkdir").chmod(0o755)
    status, _, err = checkout.run("x.py")
    assert status == 2
    assert "Read-only" in one_line(err)


# ---- Several at once ----


def test_tasks_of_one_srun_install_once(checkout: Checkout) -> None:
    tasks = [checkout.start("x.py", FAKE_SECONDS="1") for _ in range(6)]
    errors = [task.communicate(timeout=60)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0] * 6
    assert checkout.installations() == ["uv ."]
    assert sum("(once" in err for err in errors) == 1
    assert all(len(err.splitlines()) <= 1 for err in errors), errors


def test_tasks_of_one_srun_fail_once(checkout: Checkout) -> None:
    first = checkout.start("x.py", FAKE_SECONDS="2", FAKE_FAILURE="error: no route to host")
    wait_for(checkout.calls)
    others = [checkout.start("x.py") for _ in range(2)]
    for task in [first, *others]:
        assert str(checkout.log) in task.communicate(timeout=60)[1]
        assert task.returncode == 2
    assert checkout.installations() == ["uv ."]


@pytest.mark.slow
def test_lock_of_a_killed_one_is_broken(checkout: Checkout) -> None:
    process = checkout.start("x.py", FAKE_SECONDS="5")
    wait_for(checkout.calls)
    process.kill()
    process.wait()
    assert checkout.lock.exists()
    other = checkout.start("x.py")
    _, err = other.communicate(timeout=120)
    assert other.returncode == 0
    assert "waiting" in err
    assert checkout.whole()
