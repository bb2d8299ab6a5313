"""`minigpt evaluate RUN_DIR`: perplexity and bits per byte of a split, which the run directory contains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from minigpt_jax.cli import json_text, parser
from minigpt_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Perplexity and bits per byte of a run's model.

    Perplexity is exp(total negative log-likelihood / labels) over the whole split. WordPiece drops case and spacing, so
    compare its bits per byte only between models of the same tokenizer.
    """

    run_dir: parser.RunDir
    """A run directory."""
    split: Literal["valid", "test"] = "valid"
    """Which part of the corpus."""
    files: tuple[str, ...] = ()
    """Evaluate on this text instead: files, globs, folders or addresses, divided into rows like the run's corpus."""
    step: int | Literal["best"] | None = None
    """The checkpoint to take, or best for that of the lowest validation loss; the latest by default."""
    batch_size: int = 64
    """Rows per batch."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """If the model needs custom code, run the copy stored in the run directory. Use this only for runs you trust."""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file of yours to run in place of that copy; may be given several times."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    """Evaluates. Returns the exit status."""
    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt evaluate")
    from minigpt_jax.cli import jax_setup

    jax_setup.prepare()
    from minigpt_jax import generate
    from minigpt_jax.cli import text_part
    from minigpt_jax.train import evaluate

    if chosen.batch_size < 1:
        raise UserError(f"--batch-size {chosen.batch_size}: must be 1 or more")
    lm = generate.load(chosen.run_dir, chosen.step, trust_code=chosen.trust_code, code=chosen.code)
    split, rows = text_part.read(lm, chosen.run_dir, chosen.split, chosen.files)
    # Rows that only pad a batch take memory for nothing. By the default the sums are to the bit those of training.
    batch_size = min(chosen.batch_size, max(len(rows), Arguments.batch_size))
    sums = evaluate.evaluate(lm.model, lm.weights, rows, batch_size)
    if chosen.json_:
        figures = {"split": split, **sums.summary(), "tokens": sums.tokens, "step": lm.step}
        if rows.floor_bits_per_byte is not None:
            figures["floor_bits_per_byte"] = rows.floor_bits_per_byte
        print(json_text.dumps(figures))
    else:
        print(f"{split}, step {lm.step:,}, {sums.tokens:,} tokens: {evaluate.describe(sums, rows)}")
    return 0
