"""launch.sh against stand-ins for uv, Python and nvidia-smi: how it starts a program, and what it installs when."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_checkout import Checkout, one_line

from minigpt_jax.cli import COMMANDS


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


# ---- Starting ----


def test_the_checkouts_code_comes_before_the_users_pythonpath(checkout: Checkout) -> None:
    status, told, _ = checkout.run("sample", "runs/a", PYTHONPATH="/of the user")
    assert status == 0
    assert told["env"]["PYTHONPATH"] == f"{checkout.root}:/of the user"


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["help"], []])
def test_help_makes_no_environment_and_no_command_is_a_mistake(checkout: Checkout, flags: list[str]) -> None:
    checkout.have()
    process = checkout.start(*flags)
    out, err = process.communicate()
    told, untold, status = (out, err, 0) if flags else (err, out, 2)
    assert (process.returncode, untold) == (status, "")
    for command in ("./launch.sh FILE.py", *COMMANDS, "test"):
        assert f" {command} " in told
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        (["../my exp.py", "--seed", "1"], ["train", "../my exp.py", "--seed", "1"]),
        (["train", "x.py", ""], ["train", "x.py", ""]),
        (["sample", "runs/a", "--prompt", "once upon"], ["sample", "runs/a", "--prompt", "once upon"]),
        (["x.py", "--help"], ["train", "x.py", "--help"]),
    ],
)
def test_arguments_and_folder_are_the_callers(checkout: Checkout, args: list[str], passed: list[str]) -> None:
    status, told, _ = checkout.run(*args)
    assert status == 0
    assert told["args"] == ["-P", "-m", "minigpt_jax", *passed]
    assert told["cwd"] == str(checkout.caller)
    assert told["python"] == str(checkout.root / ".venv/bin/python")


def test_by_a_symbolic_link(checkout: Checkout) -> None:
    (checkout.folder / "links").mkdir()
    (checkout.folder / "links" / "minigpt").symlink_to("../a checkout/launch.sh")
    (checkout.caller / "link").symlink_to(checkout.folder / "links" / "minigpt")
    env = {"PATH": str(checkout.bin), "FAKE_CALLS": str(checkout.calls)}
    out = subprocess.run(
        ["./link", "sample", "r"], cwd=checkout.caller, env=env, capture_output=True, check=True
    ).stdout
    assert json.loads(out)["python"] == str(checkout.root / ".venv/bin/python")


def test_away_from_the_checkout(checkout: Checkout) -> None:
    # As sbatch does, which starts a copy of the script.
    (checkout.root / "pyproject.toml").unlink()
    status, _, err = checkout.run("sample", "run")
    assert status == 2
    assert "pyproject.toml" in one_line(err)


@pytest.mark.parametrize(("sent", "status"), [(None, 130), (signal.SIGTERM, 43), (signal.SIGINT, 44)])
def test_signals_reach_the_program_and_its_exit_status_the_caller(
    checkout: Checkout, sent: signal.Signals | None, status: int
) -> None:
    process = checkout.start("x.py", FAKE_MAIN="wait" if sent else "130")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["pid"] == process.pid  # launch.sh has become the program
    if sent:
        process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == status


# ---- When it installs ----


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_installs_once_and_then_starts_offline(checkout: Checkout, tool: str) -> None:
    checkout.have("python3", *(["uv"] if tool == "uv" else []))
    status, _, err = checkout.run("x.py")
    assert status == 0
    assert len(err.splitlines()) == 1
    assert checkout.installations() == [f"{tool} ."]
    assert checkout.whole()
    assert checkout.run("x.py")[2] == ""  # nor is there anything to say
    assert not checkout.lock.exists()
    assert not checkout.log.exists()


@pytest.mark.parametrize(
    ("change", "in_place"),
    [
        (lambda checkout: checkout.edit(), True),
        (lambda checkout: (checkout.root / ".venv/minigpt.stamp").unlink(), True),  # as one made by hand
        (lambda checkout: checkout.move(), False),  # its scripts name the old place
    ],
    ids=["project file edited", "environment made by hand", "checkout moved"],
)
def test_installs_again_after_a_change(checkout: Checkout, change: Callable[[Checkout], None], in_place: bool) -> None:
    checkout.run("x.py")
    (checkout.root / ".venv" / "mine").touch()
    change(checkout)
    assert not checkout.whole()
    for _ in range(2):
        assert checkout.run("x.py")[0] == 0
    assert checkout.installations() == ["uv ."] * 2
    assert (checkout.root / ".venv" / "mine").exists() == in_place


def test_installs_anew_for_another_python(checkout: Checkout) -> None:
    checkout.have("uv", "python3", "python3.13")
    checkout.run("x.py")
    for _ in range(2):
        assert checkout.run("x.py", PYTHON="python3.13")[0] == 0
    checkout.run("x.py")  # no wish: what is there
    assert checkout.installations() == ["uv ."] * 2
    status, _, err = checkout.run("x.py", PYTHON="python3.12")
    assert (status, "PYTHON=python3.12" in one_line(err)) == (2, True)
    assert checkout.whole()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize("installed", ["minigpt_jax-0.1.0.dist-info", "jax"])
def test_activated_environment(checkout: Checkout, variable: str, installed: str) -> None:
    mine = checkout.folder / "mine"
    (mine / "lib/python3.12/site-packages" / installed).mkdir(parents=True)
    (mine / "bin").mkdir()
    shutil.copy(checkout.fake, mine / "bin/python")
    _, told, err = checkout.run("x.py", **{variable: str(mine)})
    if "minigpt" in installed:
        assert told["python"] == str(mine / "bin/python")
        assert told["env"]["PYTHONPATH"] == str(checkout.root)  # this checkout, whichever is installed there
        assert (checkout.installations(), err) == ([], "")
    else:
        assert told["python"] == str(checkout.root / ".venv/bin/python")
        assert checkout.installations() == ["uv ."]


def test_activated_environment_is_its_own(checkout: Checkout) -> None:
    checkout.run("x.py")
    (checkout.root / ".venv/lib/python3.12/site-packages/minigpt_jax-0.1.0.dist-info").mkdir()
    checkout.edit()
    checkout.run("x.py", VIRTUAL_ENV=str(checkout.root / ".venv"))
    assert checkout.installations() == ["uv ."] * 2


# ---- What it installs ----


@pytest.mark.parametrize(
    ("gpu", "extra"),
    [
        ("580.65.06, 9.0\n580.65.06, 9.0", "[cuda13]"),
        ("580.65.06, 12.0", "[cuda13]"),
        ("590.44, [N/A]", "[cuda13]"),
        ("580.65.06, 7.0", "[cuda12]"),  # a V100
        ("550.54.14, 8.0", "[cuda12]"),
        ("470.256.02, 8.0", ""),
        ("", ""),  # nvidia-smi fails where there is no driver
    ],
)
def test_accelerator(checkout: Checkout, gpu: str, extra: str) -> None:
    checkout.have("uv", "python3", "nvidia-smi")
    status, _, err = checkout.run("x.py", FAKE_GPU=gpu)
    assert (status, checkout.installations()) == (0, [f"uv .{extra}"])
    assert ("too old" in err) == gpu.startswith("470")


def test_accelerator_of_the_users_choice(checkout: Checkout) -> None:
    checkout.have("uv", "python3", "nvidia-smi")
    gpu = "580.65.06, 9.0"
    checkout.run("x.py", FAKE_GPU=gpu, MINIGPT_ACCELERATOR="cpu")
    checkout.run("x.py", FAKE_GPU=gpu, MINIGPT_ACCELERATOR="cuda12")
    checkout.run("x.py", FAKE_GPU=gpu)  # CUDA is there already
    (checkout.root / ".venv/mine").touch()
    checkout.run("x.py", FAKE_GPU=gpu, MINIGPT_ACCELERATOR="tpu")
    assert checkout.installations() == ["uv .", "uv .[cuda12]", "uv .[tpu]"]
    assert not (checkout.root / ".venv/mine").exists()  # two builds of JAX do not share an environment
    status, _, err = checkout.run("x.py", MINIGPT_ACCELERATOR="cuda")
    assert (status, "MINIGPT_ACCELERATOR=cuda" in one_line(err)) == (2, True)


def test_environment_grows_by_what_is_needed(checkout: Checkout) -> None:
    checkout.run("x.py")
    checkout.run("test")
    checkout.run("x.py")
    checkout.have("uv", "python3", "nvidia-smi")  # as from a login node to one with GPUs
    checkout.run("x.py", FAKE_GPU="580.65.06, 9.0")
    checkout.run("x.py")
    assert checkout.installations() == [
        "uv .",
        "uv .[dev,kerashub,mauve,gguf,serve]",
        "uv .[dev,kerashub,mauve,gguf,serve,cuda13]",
    ]


@pytest.mark.parametrize(
    "address", ["https://host/a.txt?raw=1", "s3://bucket/*.parquet", "--data.files=gs://bucket/texts"]
)
def test_addresses_bring_the_packages_that_read_them(checkout: Checkout, address: str) -> None:
    checkout.run("x.py", "--data.files", "a.txt", "hf://datasets/a/b")
    for _ in range(2):
        checkout.run("x.py", "--data.files", "a.txt", address, address)
    assert checkout.installations() == ["uv .", "uv .[remote]"]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["x.py", "--train.trackers", "tensorboard", "wandb"], "wandb"),
        (["train", "x.py", "--train.trackers=trackio"], "trackio"),
        (
            ["sweep", "x.py", "seed=0,1", "--storage", "postgresql+psycopg://ann@host/sweeps?sslmode=require"],
            "postgres",
        ),
        (["sweep", "x.py", "seed=0,1", "--storage=postgresql://host/sweeps"], "postgres"),
    ],
)
def test_trackers_and_storages_bring_their_packages(checkout: Checkout, command: list[str], extra: str) -> None:
    checkout.run("sample", "runs/a", "--prompt", "wandb")
    for _ in range(2):
        checkout.run(*command)
    assert checkout.installations() == ["uv .", f"uv .[{extra}]"]


@pytest.mark.parametrize("asked", [["--format", "gguf"], ["--format=gguf", "--to", "a.gguf"]])
def test_export_brings_the_package_that_writes_gguf(checkout: Checkout, asked: list[str]) -> None:
    checkout.run("export", "runs/gguf/a", "--to", "a")
    for _ in range(2):
        checkout.run("export", "runs/a", *asked)
    assert checkout.installations() == ["uv .", "uv .[gguf]"]


def test_tests_are_the_checkouts(checkout: Checkout) -> None:
    tests = checkout.root / "tests"
    tests.mkdir()
    args = checkout.run("test", "-k", "launch")[1]["args"]
    assert args[:2] == ["-P", "-m"]
    assert args[-3:] == [str(tests), "-k", "launch"]
    assert "-n" in args
    (checkout.caller / "test_mine.py").touch()
    args = checkout.run("test", "test_mine.py::test_a", "-x")[1]["args"]
    assert args[-2:] == ["test_mine.py::test_a", "-x"]
    assert str(tests) not in args
    assert "-n" not in args
