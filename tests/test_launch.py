"""launch.sh against stand-ins for uv, Python and nvidia-smi: what it installs, when, and what it says if it cannot."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = "awk bash cat cp cut env head ls mkdir mv readlink rm sleep tail touch tr".split()

# Stands for uv, for every Python and for nvidia-smi, by the name it is called by; FAKE_... variables steer it.
FAKE = r"""#!/usr/bin/env bash
make_venv() { mkdir -p "$1/bin" "$1/lib/python3.12/site-packages"; cp "$0" "$1/bin/python"; }
install() { # the editable requirement comes last
  echo "$1 ${!#}" >>"$FAKE_CALLS"
  sleep "${FAKE_SECONDS:-0}"
  if [ -n "${FAKE_TOUCHES:-}" ]; then touch "$FAKE_TOUCHES"; fi
  if [ -n "${FAKE_FAILURE:-}" ]; then printf 'Resolving\n%s\n' "$FAKE_FAILURE" >&2; exit 1; fi
}
case ${0##*/} in
  nvidia-smi) [ -n "${FAKE_GPU:-}" ] && echo "$FAKE_GPU" ;;
  uv)
    case $1 in
      venv) [ -z "${FAKE_NO_VENV:-}" ] && make_venv "${!#}" ;;
      pip) install uv "$@" ;;
    esac ;;
  python*)
    case "$1 $2" in
      "-c "*version_info*) echo "${FAKE_PYTHON:-3.12}" ;;
      "-c "*executable*) type -P "$0" ;;
      "-c "*ensurepip*) [ -z "${FAKE_NO_ENSUREPIP:-}" ] ;;
      "-c "*) ;;
      "-m venv") make_venv "$3" ;;
      "-m pip") install pip "$@" ;;
      *) exec REAL_PYTHON -I -S MAIN "$0" "$@" ;;
    esac ;;
esac
"""
# Stands for minigpt: tells how it was started, then does what FAKE_MAIN says.
MAIN = """
import json, os, signal, sys, time
told = {"args": sys.argv[2:], "python": sys.argv[1], "cwd": os.getcwd(), "pid": os.getpid(), "env": dict(os.environ)}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(43))
signal.signal(signal.SIGINT, lambda *_: sys.exit(44))
print(json.dumps(told), flush=True)
if os.environ.get("FAKE_MAIN") == "wait":
    time.sleep(60)
sys.exit(int(os.environ.get("FAKE_MAIN", 0)))
"""


class Checkout:
    """A folder with launch.sh and pyproject.toml, and a PATH that has no more than the stand-ins and POSIX tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "a checkout"  # with a space in it
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.caller = folder / "elsewhere"
        for made in (self.root, self.bin, self.caller, folder / "nothing"):
            made.mkdir()
        for name in ("launch.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        (folder / "nothing" / "bash").symlink_to(self.bin / "bash")
        main = folder / "main.py"
        main.write_text(MAIN)
        self.fake = folder / "fake"
        self.fake.write_text(FAKE.replace("REAL_PYTHON", sys.executable).replace("MAIN", str(main)))
        self.fake.chmod(0o755)
        self.have("uv", "python3")

    @property
    def lock(self) -> Path:
        return self.root / ".venv.lock"

    @property
    def log(self) -> Path:
        return self.root / ".venv.log"

    def have(self, *names: str) -> None:
        """Exactly these stand-ins are on PATH."""
        for stand_in in self.bin.iterdir():
            if stand_in.name not in TOOLS:
                stand_in.unlink()
        for name in names:
            shutil.copy(self.fake, self.bin / name)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.bin / "bash"), str(self.root / "launch.sh"), *args],
            cwd=self.caller,
            env={"PATH": str(self.bin), "HOME": str(self.folder), "FAKE_CALLS": str(self.calls), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, **env: str) -> tuple[int, dict, str]:
        """The exit status, what the program told of its start (nothing if it was not reached), standard error."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, json.loads(out) if out else {}, err

    def installations(self) -> list[str]:
        """The tool and the requirement of each installation so far."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def edit(self, old: str = "[project]", new: str = "[project]\n") -> None:
        project = self.root / "pyproject.toml"
        project.write_text(project.read_text().replace(old, new, 1))

    def whole(self) -> bool:
        """Whether it starts with nothing but bash: no installer, not even mkdir to take the lock with."""
        status, told, _ = self.run("sample", "run", PATH=str(self.folder / "nothing"))
        return status == 0 and bool(told)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def one_line(err: str) -> str:
    """The line, if it is the only one besides the one that announces the work."""
    lines = [line for line in err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, err
    return lines[0]


# ---- Starting ----


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_makes_no_environment(checkout: Checkout, flag: str) -> None:
    checkout.have()
    process = checkout.start(flag)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    for command in ("FILE.py", "train", "sample", "evaluate", "sweep", "report", "test"):
        assert command in out
    assert not (checkout.root / ".venv").exists()


def test_no_command_is_a_mistake(checkout: Checkout) -> None:
    process = checkout.start()
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert "usage" in err


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


def test_exit_status_is_the_programs(checkout: Checkout) -> None:
    assert checkout.run("sample", "run", FAKE_MAIN="130")[0] == 130


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 43), (signal.SIGINT, 44)])
def test_signals_reach_the_program(checkout: Checkout, sent: signal.Signals, status: int) -> None:
    process = checkout.start("x.py", FAKE_MAIN="wait")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["pid"] == process.pid  # launch.sh has become the program
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


def test_installs_again_when_the_project_file_changed(checkout: Checkout) -> None:
    checkout.run("x.py")
    (checkout.root / ".venv" / "mine").touch()
    checkout.edit()
    assert not checkout.whole()
    checkout.run("x.py")
    checkout.run("x.py")
    assert checkout.installations() == ["uv ."] * 2
    assert (checkout.root / ".venv" / "mine").exists()  # in place


def test_installs_anew_when_the_checkout_was_moved(checkout: Checkout) -> None:
    checkout.run("x.py")
    (checkout.root / ".venv" / "mine").touch()
    checkout.root = checkout.root.rename(checkout.folder / "moved")
    checkout.run("x.py")
    assert checkout.installations() == ["uv ."] * 2
    assert not (checkout.root / ".venv" / "mine").exists()  # its scripts name the old place


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


def test_an_environment_made_by_hand_is_kept(checkout: Checkout) -> None:
    checkout.run("x.py")
    (checkout.root / ".venv/minigpt.stamp").unlink()
    (checkout.root / ".venv/mine").touch()
    assert checkout.run("x.py")[0] == 0
    assert checkout.installations() == ["uv ."] * 2
    assert (checkout.root / ".venv/mine").exists()


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
    assert checkout.installations() == ["uv .", "uv .[dev,kerashub]", "uv .[dev,kerashub,cuda13]"]


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


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


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
