"""Which figure ranks experiments, and when even that figure misleads.

Losses in nats per token can be compared only between models with the same tokens. Bits per byte can be compared across
tokenizers, if they are measured on the same text.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from minigpt_jax.config import Experiment

Figure = Literal["loss", "bits_per_byte"]

NAMES: dict[Figure, str] = {"loss": "loss", "bits_per_byte": "bits per byte"}
LABELS: dict[str, str] = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte"}
_HOW_TEXT_IS_CUT = {"layout", "evaluation_layout", "min_bytes", "sequence_length"}
_OF_TRAINING_ALONE = {"anneal_fraction"}


def figure_of(fields: Iterable[str]) -> Figure:
    """The figure that ranks experiments that differ in these fields, given by dotted name."""
    return "bits_per_byte" if any(field.startswith(("data.", "tokenizer.")) for field in fields) else "loss"


def caveats(experiments: Sequence[Experiment], same_corpus: bool = False) -> list[str]:
    """The reasons why the bits per byte of these experiments may not be comparable, a sentence for each.

    Args:
        experiments: the experiments to compare.
        same_corpus: whether their corpora are known to be the same, even if their fields differ.
    """
    texts, parts, folding = set(), set(), set()
    tokenizers = {experiment.tokenizer for experiment in experiments}
    for experiment in experiments:
        data, tokenizer = experiment.data, experiment.tokenizer
        ignored = _HOW_TEXT_IS_CUT | _OF_TRAINING_ALONE
        texts.add(tuple((f.name, getattr(data, f.name)) for f in dataclasses.fields(data) if f.name not in ignored))
        layout = data.layout_of("valid")
        parts.add((layout, data.min_bytes, data.sequence_length) if layout == "lines" else ("all",))
        folds = {"wordpiece": (tokenizer.kind, tokenizer.lowercase), "huggingface": (tokenizer.kind, tokenizer.file)}
        folding.add(folds.get(tokenizer.kind, ()))
    found = []
    if len(texts) > 1 and not same_corpus:
        found.append(
            "They are validated on different texts: a lower figure may be due to an easier text, not to a better model."
        )
    if len(parts) > 1:
        found.append(
            "They are validated on different parts of the texts: their evaluation layouts, minimum bytes or sequence "
            "lengths differ."
        )
    elif len(tokenizers) > 1 and parts and next(iter(parts))[0] == "lines":
        found.append(
            "In the lines layout a row holds as much of a text as fits into its tokens, so the tokenizers are "
            "validated on prefixes of different lengths; --data.evaluation-layout packed validates on all of the text."
        )
    if len(folding) > 1:
        found.append(
            "WordPiece drops spacing, and also case if it is lowercase, as a tokenizer.json may, so it has less to "
            "predict per byte of the original text: its figure is too low compared with that of a tokenizer that keeps "
            "both."
        )
    return found
