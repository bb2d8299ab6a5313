"""`minigpt lm_eval …`: the command line of lm-evaluation-harness, with the runs of this project as a model."""

import importlib.util
import sys
import traceback
from pathlib import Path

from minigpt_jax.errors import UserError

USAGE = """\
usage: minigpt lm_eval [arguments of lm_eval]

The command line of lm-evaluation-harness, which also knows the model minigpt: a run of this project, without PyTorch.

  minigpt lm_eval --model minigpt --model_args run_dir=runs/x,step=best --tasks arc_easy,hellaswag
  minigpt lm_eval run --help     all of its arguments
  minigpt lm_eval ls tasks       its tasks

--model_args:
  run_dir=DIR          a run directory
  step=N|best          the checkpoint; the latest by default
  max_gen_toks=N       maximum number of new tokens of a task that sets no limit; 256 by default
  seed=N               seed of random sampling; 0 by default
  trust_code=True      run the copy of custom code in the run directory; only for runs you trust
  code=FILE.py         a file of yours to run in place of that copy
"""


def main(arguments: list[str]) -> int:
    """Runs lm_eval. Returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm_eval needs lm-evaluation-harness; pip install 'minigpt_jax[harness]'")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from lm_eval.__main__ import cli_evaluate

    from minigpt_jax.interchange import harness  # noqa: F401  it registers the model

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except ConnectionError as error:
        raise UserError(f"lm_eval cannot fetch the data of a task: {error}") from error
    except ValueError as error:
        if _raised_by_lm_eval(error):  # as for a task that it does not know
            raise UserError(f"lm_eval: {error}") from error
        raise
    finally:
        sys.argv = before
    return 0


def _raised_by_lm_eval(error: Exception) -> bool:
    import lm_eval

    file = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(file).is_relative_to(Path(str(lm_eval.__file__)).parent)
