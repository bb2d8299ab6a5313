"""The text that a model is judged by: a part of its run's corpus, or files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from minigpt_jax.corpora import read_files
from minigpt_jax.data import store
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.storage.run_dir import RunDir


def read(lm: LanguageModel, run_dir: Path, split: Literal["valid", "test"], files: Sequence[str]) -> tuple[str, Rows]:
    """The name of the text and its rows, cut as those of the run's corpus.

    Args:
        lm: the model of the run.
        run_dir: the run directory, which has the parts of its corpus.
        split: the part.
        files: text to take instead: files, globs, folders or addresses.

    Raises:
        UserError: there is no such text.
    """
    if files:
        data = lm.experiment.data
        texts = read_files(files, data.document, data.text_field, data.separator, flag="--files")
        return " ".join(files), store.tokenise(texts, lm.experiment, lm.tokenizer, "--files")
    if "imported" in RunDir(run_dir).description():
        raise UserError(f"{run_dir} was imported and holds no text of its own; give some by --files")
    return split, Rows.load(RunDir(run_dir).rows(split))
