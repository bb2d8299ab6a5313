"""Sampling, timed against KerasHub and Hugging Face: same weights, same machine, in turns.

    ./launch.sh experiments/benchmark_sampling.py

Contenders, each from an empty prompt to 127 tokens:

- the tutorial's model: this project; KerasHub as the tutorial calls it (the whole model for each token, compiled anew
  at each call); the same under `jax.jit`; KerasHub with a cache, under `jax.jit`.
- the same size in GPT-2's form: this project; Hugging Face `generate` with its dynamic and its static cache.

The command line keeps compiled programs on disk, where the tutorial's way finds its own again; without that cache its
compilation, at each call, is in its figure.

Ours is timed as a user calls it, `LanguageModel.generate`, from texts to texts. It needs the extra `compare`; what is
not installed is left out. Last come the parts of a token's time, down to the floor: reading the weights once.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from minigpt_jax import display, samplers
from minigpt_jax.benchmark import rounds
from minigpt_jax.benchmark.sampling import METHODS, NEW, WINDOW, contenders, language_model, ours, weights_of_kerashub
from minigpt_jax.cli import parser
from minigpt_jax.config import BOS_ID, Experiment, ModelConfig
from minigpt_jax.files import make_folder
from minigpt_jax.generate import LanguageModel
from minigpt_jax.generate.programs import compiler_options
from minigpt_jax.ops import kv_cache


@dataclass(frozen=True)
class Arguments:
    """Time sampling against KerasHub and Hugging Face."""

    rounds: int = 5
    """Times that each contender is timed, in turn with the others; the median counts."""
    batch_sizes: tuple[int, ...] = (1, 32)
    """Prompts at once."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Ways of sampling."""
    output: Path = Path("runs/benchmarks")
    """Folder for sampling.md and sampling.json."""


def main(arguments: list[str]) -> int:
    """Times, prints and writes the tables."""
    chosen: Arguments = parser.parse(Arguments, arguments, "benchmark_sampling.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    reference = language_model(Experiment("reference"), weights_of_kerashub())
    figures, tables = [], {}
    for batch in chosen.batch_sizes:
        table = []
        for method in chosen.methods:
            for name, timing in rounds.alternate(contenders(reference, method, batch), chosen.rounds).items():
                figures.append(figure(name, method, batch, timing))
                table.append(figures[-1])
                display.console.print(line(figures[-1]))
        tables[f"{batch} {'prompt' if batch == 1 else 'prompts'} at once"] = table_of(table)
    parts = {batch: token_parts(reference, batch, chosen.rounds) for batch in chosen.batch_sizes}
    header = ["part of a greedy token, ms", *(f"batch {batch}" for batch in parts)]
    names = next(iter(parts.values()))
    tables["Where a token's time goes"] = rounds.markdown_table(
        header, [[name, *(part[name] for part in parts.values())] for name in names]
    )
    path = rounds.write(chosen.output, "sampling", "Sampling", tables, {"contenders": figures, "parts": parts})
    display.console.print(path.read_text(), markup=False)
    return 0


def figure(name: str, method: str, batch: int, timing: rounds.Timing) -> dict[str, Any]:
    return {
        "contender": name,
        "method": method,
        "batch": batch,
        "seconds": timing.median,
        "tokens_per_second": batch * NEW / timing.median,
        "compile_seconds": max(timing.first - timing.median, 0.0),
        "rounds": timing.rounds,
    }


def line(figure: dict[str, Any]) -> str:
    return (
        f"batch {figure['batch']} · {figure['method']} · {figure['contender']}: {figure['seconds']:.3f} s, "
        f"{figure['tokens_per_second']:,.0f} tokens/s, first call {figure['compile_seconds']:.1f} s more"
    )


def table_of(figures: list[dict[str, Any]]) -> str:
    """A row a contender and method, with how many times as long it takes as ours of the same form."""
    rows, own = [], 1.0
    for one in figures:
        if one["contender"].startswith("minigpt_jax"):
            own = one["seconds"]
        ratio = one["seconds"] / own
        rows.append(
            [one["method"], one["contender"], one["seconds"], one["tokens_per_second"], one["compile_seconds"], ratio]
        )
    return rounds.markdown_table(
        ["method", "contender", "seconds", "tokens a second", "first call, seconds more", "times ours"], rows
    )


def token_parts(lm: LanguageModel, batch: int, count: int) -> dict[str, float]:
    """Milliseconds of a greedy token: the whole, and less and less of it, down to reading the weights once."""
    gpt: Any = lm.decode_form.model  # whose apply is typed too loosely for a tuple
    params = lm.decode_form.weights
    config: ModelConfig = lm.experiment.model
    # Of the embeddings a row or two are read, and vectors are small.
    read = [leaf for name, layer in params.items() if "embedding" not in name for leaf in jax.tree.leaves(layer)]
    matrices = [leaf for leaf in read if leaf.ndim == 2]
    cache = kv_cache.allocate(batch, config.num_layers, WINDOW, config.kv_heads, config.head_size)

    jit = functools.partial(jax.jit, compiler_options=compiler_options() or None)

    @jit
    def reading(matrices: Any) -> Any:
        def once(_: Any, scale: Any) -> Any:
            return 1 + 1e-9 * sum(jnp.max(jnp.full(matrix.shape[:1], scale) @ matrix) for matrix in matrices)

        return lax.fori_loop(0, NEW, once, jnp.float32(1))

    @jit
    def stepping(params: Any, cache: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            tokens, cache = carry
            position = jnp.full(batch, i, jnp.int32)
            logits, _, cache = gpt.apply({"params": params}, tokens, cache, position, method="step")
            return 3 + (logits.max(axis=1) > 0), cache

        return lax.fori_loop(0, NEW, step, (jnp.full(batch, 3), cache))

    request = samplers.request([[BOS_ID]] * batch, vocabulary_size=gpt.vocabulary_size, max_new_tokens=NEW)

    @jit
    def sampling(params: Any, request: Any) -> Any:
        apply = functools.partial(gpt.apply, {"params": params})
        prefill = functools.partial(apply, slots=WINDOW, method="prefill")
        return samplers.decode(prefill, functools.partial(apply, method="step"), samplers.Greedy(), request, NEW)

    timings = rounds.alternate(
        {
            "from text to text": functools.partial(ours, lm, "greedy", batch),
            "the compiled program": lambda: sampling(params, request),
            "the model's steps alone": lambda: stepping(params, cache),
            "reading the weights once": lambda: reading(matrices),
        },
        count,
    )
    parts = {name: 1e3 * timing.median / NEW for name, timing in timings.items()}
    return parts
