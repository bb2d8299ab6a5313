"""The rest of the KerasHub tutorial around its model: the vocabulary, the input pipeline, `fit` and `evaluate`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_hub
import numpy as np
import tensorflow

from minigpt_jax.benchmark.kerashub import SEQ_LEN, VOCAB_SIZE, allow_rank_promotion
from minigpt_jax.config import BOS_ID, RESERVED_PIECES

tf: Any = tensorflow  # its type annotations are incomplete
tf.config.set_visible_devices([], "GPU")

BATCH_SIZE, MIN_STRING_LEN = 64, 512


def write_lines(texts: Iterable[str], path: Path) -> Path:
    """Writes a text file with one document per line, as input of the tutorial's pipeline."""
    with path.open("w") as file:
        file.writelines(text + "\n" for text in texts)
    return path


def long_lines(path: Path) -> Any:
    """The tutorial's raw dataset: batches of the lines that are long enough."""
    lines = tf.data.TextLineDataset(str(path))
    return lines.filter(lambda line: tf.strings.length(line) > MIN_STRING_LEN).batch(BATCH_SIZE)


def vocabulary(path: Path) -> list[str]:
    """The vocabulary that KerasHub's trainer computes from the long lines of a file."""
    trained: Any = keras_hub.tokenizers.compute_word_piece_vocabulary(
        long_lines(path).shuffle(256),
        vocabulary_size=VOCAB_SIZE,
        lowercase=True,
        reserved_tokens=list(RESERVED_PIECES),
    )
    return trained


def tokenise(path: Path, pieces: Sequence[str]) -> int:
    """Tokenises every line of a file as fast as tf.data can. Returns the number of tokens."""
    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(vocabulary=list(pieces), lowercase=True)
    lines = tf.data.TextLineDataset(str(path)).batch(1024).map(tokenizer, num_parallel_calls=tf.data.AUTOTUNE)
    return sum(int(batch.flat_values.shape[0]) for batch in lines)


def batches(path: Path, pieces: Sequence[str]) -> Iterator[Any]:
    """One epoch of the tutorial's pairs (features, labels): whole batches are shuffled, then tokenised."""
    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(
        vocabulary=list(pieces), sequence_length=SEQ_LEN, lowercase=True
    )
    packer = keras_hub.layers.StartEndPacker(sequence_length=SEQ_LEN, start_value=BOS_ID)

    def preprocess(lines: Any) -> tuple[Any, Any]:
        labels = tokenizer(lines)
        return packer(labels), labels

    dataset = long_lines(path).shuffle(256).map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def fit(model: Any, rows: np.ndarray) -> None:
    """Trains by Keras's training loop for one epoch, over rows [steps · 64, 129] of features and labels in order."""
    with allow_rank_promotion():
        model.fit(rows[:, :-1], rows[:, 1:], batch_size=BATCH_SIZE, epochs=1, shuffle=False, verbose=0)


def perplexity(model: Any, rows: np.ndarray) -> float:
    """The perplexity that Keras reports: exp(total negative log-likelihood / labels that are not [PAD])."""
    with allow_rank_promotion():
        figures = model.evaluate(rows[:, :-1], rows[:, 1:], batch_size=BATCH_SIZE, verbose=0, return_dict=True)
    return float(figures["perplexity"])
