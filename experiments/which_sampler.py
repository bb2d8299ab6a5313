"""Which way of sampling gives texts that are most like human ones, for a model of three million parameters?

    ./launch.sh experiments/simplebooks_best.py --data.archive books.zip --train.steps 3190 --model.dtype bfloat16
    ./launch.sh experiments/which_sampler.py runs/simplebooks_best

This runs `compare` with every method at its settings, each over the same 512 prefixes of validation text, and then
lists the best setting of each method. It needs the extra `mauve`. Measures and plots are in
runs/simplebooks_best/which_sampler.

Finding, for the best configuration before its embedding was factorised (validation perplexity 47.9), for prefixes of 32
tokens and up to 96 new ones. Distance is the mean difference from human text over ten measures, 0 for human text and at
most 1:

    method                distance  perplexity  Self-BLEU  repeated 4-grams  distinct-2  MAUVE
    human                    0          45.9       0.278        0.006           0.512     1
    top_k k=640              0.063      34.6       0.213        0.004           0.526     0.95
    typical p=0.9            0.073      25.6       0.257        0.006           0.474     0.97
    random temperature=1     0.080      44.0       0.200        0.003           0.561     0.94
    top_p p=0.98             0.098      37.6       0.208        0.004           0.543     0.96
    min_p p=0.01             0.188      18.8       0.328        0.009           0.393     0.91
    contrastive k=8, 0.6     0.450       9.6       0.718        0.000           0.202     0.85
    beam num_beams=4         0.788       2.2       0.595        0.826           0.045     0.63
    greedy                   0.854       2.6       0.689        0.811           0.041     0.42

- The order of Holtzman et al. (2020) holds at its lower end: greedy and beam search are by far the least human. 95% or
  more of their texts end in a repeated phrase, and a wider beam makes it worse (0.838 with ten hypotheses).
- Its upper end does not hold. Sampling from the whole distribution is among the nearest to human text here, and any
  strong truncation moves away from it. For top-p the distance falls all the way: 0.63, 0.43, 0.34, 0.25, 0.19, 0.14,
  0.11, 0.10 and 0.10 at p = 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95 and 0.98. The best p is 0.95 or more, and a
  temperature below 1 never helps. The large models of that paper found their own samples less probable than human
  text. This small one finds both about equally probable (perplexities of 44.0 and 45.9).
- Contrastive search with alpha = 0.6 hardly ever repeats itself, as it promises, but its texts are alike: their
  Self-BLEU is among the highest of all. It is nearer to human text than greedy and beam search, and farther than
  methods that cut little.

The page has intervals of all measures. On a shared and busy machine with two CPU cores the 45 methods took 46 minutes,
of which beam search took 11.
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
SHOWN = ("distance", "perplexity", "self_bleu", "repeated_4grams", "distinct_2", "mauve")


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
    output: Path | None = None
    """Folder for the results; by default, which_sampler in the run directory."""


def main(arguments: list[str]) -> int:
    """Compares, and prints the best of each method; returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "which_sampler.py")
    out = chosen.output or chosen.run_dir / "which_sampler"
    sizes = {"prompts": chosen.prompts, "prompt-tokens": chosen.prompt_tokens, "max-new-tokens": chosen.max_new_tokens}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    status = compare.main([str(chosen.run_dir), *METHODS, *flags, "--out", str(out)])
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        human, *rows = csv.DictReader(file)
    table = rich.table.Table(title="Nearest to human text")
    table.add_column("the best of each", no_wrap=True)
    for name in SHOWN:
        table.add_column(name.replace("_", " "), justify="right")
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
