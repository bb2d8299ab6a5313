"""`minigpt evaluate RUN_DIR`: perplexity and bits per byte of a split, from the run directory alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from minigpt_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Perplexity and bits per byte of a run's model.

    Perplexity is exp(total negative log-likelihood / labels) over the whole split. WordPiece loses case and spacing, so
    its bits per byte compare models of the same tokenizer.
    """

    run_dir: tyro.conf.Positional[Path]
    """A run directory."""
    split: Literal["valid", "test"] = "valid"
    """Which part of the corpus."""
    files: tuple[str, ...] = ()
    """Text of your own instead: files, globs or folders, read and cut into rows as the run's corpus would be."""
    step: int | Literal["best"] | None = None
    """The checkpoint to take, or best for that of the lowest validation loss; the latest by default."""
    batch_size: int = 64
    """Rows at a time."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the copies of code of the user's own that the run directory holds, if its model needs any."""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file of yours to run in place of such a copy; may be given several times."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    """Evaluates; returns the exit status."""
    chosen = tyro.cli(Arguments, args=arguments, prog="minigpt evaluate")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import generate
    from minigpt_jax.corpora import read_files
    from minigpt_jax.data import store
    from minigpt_jax.data.rows import Rows
    from minigpt_jax.storage.run_dir import RunDir
    from minigpt_jax.train import evaluate

    if chosen.batch_size < 1:
        raise UserError(f"--batch-size {chosen.batch_size}: must be 1 or more")
    lm = generate.load(chosen.run_dir, chosen.step, trust_code=chosen.trust_code, code=chosen.code)
    if chosen.files:
        split, data = " ".join(chosen.files), lm.experiment.data
        texts = read_files(chosen.files, data.document, data.json_field, flag="--files")
        rows = store.tokenise(texts, lm.experiment, lm.tokenizer, "--files")
    else:
        files = RunDir(chosen.run_dir)
        if "imported" in files.description():
            raise UserError(f"{chosen.run_dir} was imported and holds no text to evaluate; give some by --files")
        split, rows = chosen.split, Rows.load(files.rows(chosen.split))
    sums = evaluate.evaluate(lm.model, lm.weights, rows, chosen.batch_size)
    if chosen.json_:
        figures = {"split": split, **sums.summary(), "tokens": sums.tokens, "step": lm.step}
        if rows.floor_bits_per_byte is not None:
            figures["floor_bits_per_byte"] = rows.floor_bits_per_byte
        print(json.dumps(figures))
    else:
        print(f"{split}, step {lm.step:,}, {sums.tokens:,} tokens: {evaluate.describe(sums, rows)}")
    return 0
