"""`minigpt export RUN_DIR --to PATH`: a run's model for other tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minigpt_jax.cli import parser


@dataclass(frozen=True)
class Arguments:
    """Write the model of a run, with its tokenizer, as other tools read it: a folder that Hugging Face's Transformers
    loads, or a GGUF file that llama.cpp runs. No PyTorch is needed. The model's class is one of Transformers if one
    computes exactly the same function; otherwise the folder carries the code of a class, which trust_remote_code=True
    loads. A GGUF file is written only if llama.cpp has an architecture that computes the same function."""

    run_dir: parser.RunDir
    """A run directory. Its moving average of the weights is taken if it has one."""
    to: Path
    """The folder to write, or for gguf the file, NAME.gguf. An earlier export is replaced, anything else is refused."""
    format: Literal["huggingface", "gguf"] = "huggingface"
    """The tool to write for: Transformers, or llama.cpp and the programs made with it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; of a GGUF file, that of its matrices."""
    step: int | Literal["best"] | None = None
    """The checkpoint to take, or best for that of the lowest validation loss; the latest by default."""


def main(arguments: list[str]) -> int:
    """Exports; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt export")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import display
    from minigpt_jax.interchange.export import export

    done = export(chosen.run_dir, chosen.to, chosen.format, chosen.dtype, chosen.step)
    lines = [
        f"{'architecture' if chosen.format == 'gguf' else 'class'} {done.class_name}: {done.reason}",
        f"step {done.step or 0:,}, {done.size / 1e6:,.2f} MB of weights in {chosen.dtype}, in {chosen.to}",
        done.tokenizer or "its README.md is the model card; fill in the licence",
    ]
    if done.differing is not None:
        count, total = done.differing
        lines.append(f"tokenizer.json encodes {count:,} of {total:,} validation documents differently from training")
    for line in lines:
        display.console.print(display.printable(line))
    return 0
