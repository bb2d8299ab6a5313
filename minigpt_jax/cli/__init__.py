"""The command line: parses, dispatches, and turns expected errors into one clear line."""

import difflib
import errno
import importlib
import os
import sys

from minigpt_jax.errors import UserError

COMMANDS = ("train", "sample", "evaluate", "sweep", "report")
USAGE = """\
usage: minigpt COMMAND ...

  train FILE.py [flags]      train the experiment that a file defines; FILE.py alone does the same
  sample RUN_DIR [flags]     text from a checkpoint
  evaluate RUN_DIR [flags]   perplexity and bits per byte
  sweep FILE.py AXIS ...     trials over an experiment's fields
  report RUN_DIR ...         tables and plots, of runs or of a sweep

Each command, and each FILE.py, lists its flags with --help.
"""
INTERRUPTED = 130
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; the exit status is 0, 2 for a mistake of the user's, or 130 if interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name.endswith(".py"):
        name, rest = "train", arguments
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{name} is neither a command nor a .py file: {hint}commands are {', '.join(COMMANDS)}")
        return importlib.import_module(f"minigpt_jax.cli.{name}").main(rest)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as `| head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = error.filename or "the disk"
        return _fail(f"{where} cannot be written: {error.strerror}; free some room, or write somewhere else")


def _fail(line: str) -> int:
    print(f"minigpt: {' '.join(line.split())}", file=sys.stderr)
    return 2
