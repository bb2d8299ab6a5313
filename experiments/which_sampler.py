"""Which way of sampling gives texts that are most like human ones, for a model of three million parameters?

    ./launch.sh experiments/simplebooks_best.py --data.archive simplebooks.zip
    ./launch.sh experiments/which_sampler.py runs/simplebooks_best

This runs `compare` with every method at its settings, each over the same 512 prefixes of validation text, and then
lists the best setting of each method. It needs the extra mauve (`pip install 'minigpt_jax[mauve]'`). Measures and plots
are in runs/simplebooks_best/which_sampler.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import rich.table
import tyro

from minigpt_jax import display
from minigpt_jax.cli import compare, parser

METHODS = (
    "greedy",
    "beam:num_beams=4,10",
    "random:temperature=0.5,0.6,0.7,0.8,0.9,1",
    "top_k:k=5,10,20,40,80,160,640",
    "top_p:p=0.3,0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.98",
    "top_p:p=0.9,0.95:temperature=0.8,0.9",
    "min_p:p=0.01,0.02,0.05,0.1,0.2",
    "typical:p=0.2,0.5,0.8,0.9,0.95",
    "contrastive:k=4,8:alpha=0.2,0.4,0.6",
)
SHOWN = ("distance", "perplexity", "zipf", "self_bleu", "repetition", "repeated_4grams", "distinct_2", "mauve")


@dataclass(frozen=True)
class Arguments:
    """Compares every way of sampling at several settings, and lists the best setting of each."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory."""
    prompts: int = 512
    """Prefixes of validation text."""
    prompt_tokens: int = 32
    """Tokens in a prefix."""
    max_new_tokens: int = 96
    """The most tokens in a continuation."""
    out: Path | None = None
    """Folder for the results; by default, which_sampler in the run directory."""


def main(arguments: list[str]) -> int:
    """Compares, and prints the best of each method; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "which_sampler.py")
    out = chosen.out or chosen.run_dir / "which_sampler"
    sizes = {"prompts": chosen.prompts, "prompt-tokens": chosen.prompt_tokens, "max-new-tokens": chosen.max_new_tokens}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    status = compare.main([str(chosen.run_dir), *METHODS, *flags, "--out", str(out)])
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        human, *rows = csv.DictReader(file)
    table = rich.table.Table("the best of each", *SHOWN, title="Nearest to human text")
    for row in (human, *best_of_each(rows)):
        table.add_row(row["method"], *(f"{float(row[name]):.3f}" for name in SHOWN))
    display.console.print(table)
    return status


def best_of_each(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The row of each sampler with the least distance from human text, the nearest first."""
    ordered = sorted(rows, key=lambda row: float(row["distance"]))
    best: dict[str, dict[str, str]] = {}
    for row in ordered:
        best.setdefault(row["sampler"], row)
    return list(best.values())
