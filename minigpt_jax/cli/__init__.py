"""The command line: chooses the command, and turns expected errors into one clear line."""

import atexit
import contextlib
import errno
import importlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from minigpt_jax.config import code, nearest
from minigpt_jax.errors import UserError, printable
from minigpt_jax.trial import signals
from minigpt_jax.trial.signals import INTERRUPTED

COMMANDS = ("train", "sample", "compare", "evaluate", "sweep", "report", "export", "import", "serve", "lm_eval")
USAGE = """\
usage: minigpt COMMAND ...

  train FILE.py [flags]      train the experiment that a file defines; FILE.py alone does the same
  sample RUN_DIR [flags]     text from a checkpoint
  compare RUN_DIR METHOD ... ways of sampling, judged beside human text
  evaluate RUN_DIR [flags]   perplexity and bits per byte
  sweep FILE.py AXIS ...     trials over an experiment's fields
  report RUN_DIR ...         tables and plots, of runs or of a sweep
  export RUN_DIR --to PATH   a Hugging Face folder, or a GGUF file for llama.cpp, made of a run
  import HF_DIR --to DIR     a run directory made of a Hugging Face folder
  serve RUN_DIR ...          a page to play with sampling, and an OpenAI-compatible endpoint
  lm_eval [arguments]        lm-evaluation-harness, with runs as its model minigpt

Each command, and each FILE.py, lists its flags with --help.
"""
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_OF_A_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def entry() -> NoReturn:
    """Runs the command of this process and ends the process with its status."""
    status = main()
    if status == INTERRUPTED:
        # XLA may still be compiling, and crashes if the interpreter is taken down meanwhile.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 2 for a mistake of the user, or 130 if interrupted."""
    _open_streams()
    with signals.as_interrupts() as received:
        try:
            status = _main(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
            return status
        except UserError as error:
            return _fail(str(error))
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # as by `| head`
            _drop_output()
            return 0
        except Exception as error:
            if received:  # libraries turn an interrupt into other errors
                return INTERRUPTED
            if line := _told(error) or code.blame(error) or _of_a_path(error, sys.argv[1:] if argv is None else argv):
                return _fail(line)
            raise


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name.endswith(".py"):
        name, rest = "train", arguments
    if name not in COMMANDS:
        hint = text_hint(name) or nearest(name, COMMANDS)
        raise UserError(f"{name} is neither a command nor a .py file: commands are {', '.join(COMMANDS)}{hint}")
    module = "import_" if name == "import" else name  # a keyword of Python
    return importlib.import_module(f"minigpt_jax.cli.{module}").main(rest)


def text_hint(file: str) -> str:
    """How to train on this text, if it is a file; otherwise nothing."""
    if not Path(file).is_file():
        return ""
    return f"; to train on a text, ./launch.sh experiments/text.py --data.files {shlex.quote(file)}"


def _told(error: Exception) -> str | None:
    """A one-line message for an error of the disk or of JAX's devices; None for other errors."""
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        where = error.filename or "the disk"
        if where == "the disk" and error.errno == errno.ENOSPC:
            _drop_output()  # it may be standard output that is full
        return f"{where} cannot be written: {error.strerror}; free some room, or write somewhere else"
    last = traceback.extract_tb(error.__traceback__)[-1]
    if str(error).startswith("Unable to initialize backend") or last.filename.endswith("jax/_src/xla_bridge.py"):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).split("\n")[0] or "its support is not installed"
        return f"JAX_PLATFORMS={platforms}: JAX finds no such device ({reason}); unset it, or take JAX_PLATFORMS=cpu"
    return None


def _of_a_path(error: Exception, arguments: Sequence[str]) -> str | None:
    """A one-line message for a path of the command line, or one in it, that cannot be opened; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in _OF_A_PATH or not isinstance(error.filename, str):
        return None
    paths = [str(path) for path in (Path(error.filename), *Path(error.filename).parents) if path.name]
    if any(path in argument for path in paths for argument in arguments):
        return f"{error.filename} cannot be opened or made: {error.strerror}; name another path"
    return None


def _open_streams() -> None:
    """Replaces closed standard streams, and lets streams replace characters that they cannot encode."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file that is opened gets this number, and what is printed goes to it
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str) -> int:
    print(f"minigpt: {printable(' '.join(line.split()))}", file=sys.stderr)
    return 2
