"""A run's model in three programs: this project, Transformers and llama.cpp, which run its exports.

All generate greedy texts up to the end of the window from empty prompts. What is not installed is left out.
"""

import functools
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_jax import generate, samplers
from minigpt_jax.benchmark import llama_cpp
from minigpt_jax.benchmark.llama_cpp import LlamaCpp
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange.export import export

Contenders = dict[str, Callable[[], Any]]


class Exported:
    """A run and its exports.

    Args:
        run_dir: a run directory, whose model has to be one of Transformers and of llama.cpp.
        folder: an empty folder for the exports.
        stack: closes the processes of llama.cpp.
    """

    def __init__(self, run_dir: Path, folder: Path, stack: ExitStack) -> None:
        self.lm: LanguageModel = generate.load(run_dir)
        self.new = self.lm.model.sequence_length - 1
        self._stack = stack
        self._file, self._folder = folder / "model.gguf", folder / "huggingface"
        export(run_dir, self._file, "gguf")
        export(run_dir, self._folder)

    def contenders(self, batch: int, threads: tuple[int, ...]) -> Contenders:
        """The contenders by name: each generates `batch` texts.

        Args:
            threads: how many threads llama.cpp takes, for a contender each.
        """
        calls: Contenders = {"minigpt_jax": functools.partial(self.ours, batch)}
        if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None:
            calls["Transformers, dynamic cache"] = functools.partial(self.of_transformers, batch)
            calls["Transformers, static cache"] = functools.partial(
                self.of_transformers, batch, cache_implementation="static"
            )
        if llama_cpp.folder() is not None:
            for count in threads:
                theirs = LlamaCpp(self._file, count, batch, self.lm.model.sequence_length)
                call = functools.partial(self.of_llama_cpp, self._stack.enter_context(theirs), batch)
                calls[f"llama.cpp, {count} {'thread' if count == 1 else 'threads'}"] = call
        return calls

    def ours(self, batch: int) -> list[list[int]]:
        return [one.tokens for one in self.lm.generate([""] * batch, samplers.Greedy(), self.new)]

    def of_transformers(self, batch: int, **options: Any) -> list[list[int]]:
        import torch

        prompts = torch.full((batch, 1), self.lm.tokenizer.special.start)
        with torch.inference_mode():
            texts = self._transformers.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=self.new, **options
            )
        return np.asarray(texts)[:, 1:].tolist()

    def of_llama_cpp(self, theirs: LlamaCpp, batch: int) -> list[list[int]]:
        return theirs.greedy([[self.lm.tokenizer.special.start]] * batch, self.new).tokens

    @functools.cached_property
    def _transformers(self) -> Any:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(self._folder).eval()
        # A text goes on past its end, as those of the other programs do.
        model.generation_config = transformers.GenerationConfig(pad_token_id=self.lm.tokenizer.special.line_end)
        return model
