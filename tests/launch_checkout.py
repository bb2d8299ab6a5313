"""A checkout to try launch.sh in, with stand-ins for uv, Python and nvidia-smi."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = "awk bash cat cp cut env find head ls mkdir mv readlink rm sleep tail touch tr".split()

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
            # Tests that run in the background of a shell inherit an ignored SIGINT, which bash could not trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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

    def move(self) -> None:
        self.root = self.root.rename(self.folder / "moved")

    def whole(self) -> bool:
        """Whether it starts with nothing but bash: no installer, not even mkdir to take the lock with."""
        status, told, _ = self.run("sample", "run", PATH=str(self.folder / "nothing"))
        return status == 0 and bool(told)


def one_line(err: str) -> str:
    """The line, if it is the only one besides the one that announces the work."""
    lines = [line for line in err.splitlines() if not line.endswith("...")]
    assert len(lines) == 1, err
    return lines[0]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
