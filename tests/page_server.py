"""A server of the page for tests: a tiny model that knows every byte, and reads and writes anything."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import uvicorn

from minigpt_jax import tokenizer
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.generate import LanguageModel
from minigpt_jax.serve.app import create_app
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.runs import Runs

WINDOW = 128


def byte_model(path: Path | None = None) -> LanguageModel:
    """A model that was never trained, whose weights are large enough that it has opinions."""
    experiment = Experiment(
        "bytes",
        data=DataConfig(layout="packed", sequence_length=WINDOW),
        tokenizer=TokenizerConfig(kind="byte"),
        model=ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=32, positions="rope"),
    )
    pieces = tokenizer.byte()
    lm = LanguageModel(experiment, pieces, {}, path=path)
    params = jax.jit(lm.model.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    letters = np.zeros(lm.model.vocabulary_size, np.float32)
    letters[pieces.encode_batch(["abcdefghijklmnopqrstuvwxyz    .,<>&"])[0]] = 4.0  # so that its texts can be read
    lm.weights = jax.tree.map(lambda leaf: 4.0 * leaf + (letters if leaf.shape == letters.shape else 0), params)
    return lm


@contextlib.contextmanager
def serving(lm: LanguageModel) -> Iterator[str]:
    """The address of a server of this model, under the name `bytes`."""
    app = create_app(Runs([Engine(lm, "bytes", sizes=(1, 4))]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)
