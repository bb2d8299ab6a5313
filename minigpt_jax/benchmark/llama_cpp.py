"""llama.cpp, which runs a GGUF file in a process of its own: by ids or texts, for tests and benchmarks.

It comes prebuilt with the npm package node-llama-cpp, which `.ci/run` installs:

    npm install --prefix .cache/llama.cpp --ignore-scripts --omit=optional node-llama-cpp @node-llama-cpp/linux-x64
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VARIABLE = "MINIGPT_LLAMA_CPP"
"""Names the folder that npm installed node-llama-cpp into, if it is not .cache/llama.cpp of the checkout."""
_SCRIPT = Path(__file__).with_name("llama_cpp.mjs")
_ANSWER = "answer: "
_FOLDER = Path(__file__).parents[2] / ".cache" / "llama.cpp"


class Texts(NamedTuple):
    """Greedy texts of several prompts, by ids, and the seconds that they took."""

    tokens: list[list[int]]
    seconds: float


def folder() -> Path | None:
    """The folder that has node-llama-cpp, or None if that or Node.js is not installed."""
    path = Path(os.environ.get(VARIABLE) or _FOLDER)
    found = (path / "node_modules" / "node-llama-cpp").is_dir() and shutil.which("node")
    return path if found else None


class LlamaCpp:
    """A process of llama.cpp with a model. It ends when the context does.

    Args:
        model: a GGUF file.
        threads: the threads that it computes with.
        sequences: the most prompts at once.
        context: the most tokens of a prompt and its text.
        exact: whether the cache of keys and values is in float32, and not in float16.
    """

    def __init__(
        self, model: Path, threads: int = 1, sequences: int = 1, context: int = 256, exact: bool = False
    ) -> None:
        found = folder()
        assert found is not None, "node-llama-cpp is not installed"
        settings = {"threads": threads, "sequences": sequences, "context": context, "exact": exact}
        command = ["node", str(_SCRIPT), str(found.absolute()), str(model.absolute()), json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def about(self) -> dict[str, Any]:
        """The kind of the vocabulary, its special tokens, and the window."""
        return self._ask("about")

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        return self._ask("tokenize", text=text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of ids."""
        return self._ask("detokenize", tokens=tokens)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits after each token, [T, V]."""
        return np.array(self._ask("logits", tokens=tokens), np.float32)

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, never: Sequence[int] = ()) -> Texts:
        """The most probable `count` tokens after each prompt, past any end, except those of `never`."""
        found = self._ask("generate", prompts=prompts, count=count, never=never)
        return Texts(found["texts"], found["seconds"])

    def _ask(self, request: str, **more: Any) -> Any:
        process: Any = self._process
        process.stdin.write(json.dumps({"request": request, **more}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith(_ANSWER):  # what llama.cpp logs comes on the same stream
                return json.loads(line.removeprefix(_ANSWER))
        raise RuntimeError(f"llama.cpp ended with status {process.wait()}")
