"""`minigpt import HF_DIR --to RUN_DIR`: a run directory made of a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minigpt_jax.cli import parser


@dataclass(frozen=True)
class Arguments:
    """Make a run directory of a Hugging Face folder. All commands that take a run directory take it, and so does
    --init-from. It has no validation part: give --files to evaluate."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="HF_DIR")]
    """A folder with config.json, safetensors and tokenizer.json. No PyTorch is needed, and pickles are not read."""
    to: Path
    """The run directory to make."""


def main(arguments: list[str]) -> int:
    """Imports; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt import")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import display, generate
    from minigpt_jax.interchange import importing

    run_dir = importing.import_folder(chosen.folder, chosen.to)
    lm = generate.load(run_dir.path)
    display.console.print(display.parameter_table(lm.weights))
    display.console.print(display.printable(f"{lm!r} is in {run_dir.path}"))
    return 0
