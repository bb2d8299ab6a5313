"""The README's sampler and processor: their code is taken from its section "Extend it" and used."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import PIECES, PROMPTS, WINDOW, full_pass_logprobs, language_model

from minigpt_jax import model
from minigpt_jax.config import BOS_ID, PAD_ID
from minigpt_jax.generate import LanguageModel

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SECTION = README.partition("\n## Extend it\n")[2].partition("\n## ")[0]


def recipe(file: str) -> dict[str, Any]:
    """What the code of the block that begins with the file's name defines."""
    [code] = re.findall(rf"```python\n# {re.escape(file)}\n(.*?)```", SECTION, re.DOTALL)
    assert len(code.splitlines()) <= 12
    defined: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, file, "exec"), defined)
    return defined


Epsilon, no_echo = recipe("epsilon.py")["Epsilon"], recipe("no_echo.py")["no_echo"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model()


def test_the_sampler_takes_no_improbable_token(lm: LanguageModel):
    logits_of: Any = jax.jit(lambda tokens: model.logits(lm.model, lm.weights, jnp.asarray(tokens)))
    for epsilon in (0.02, 0.1):
        drawn = lm.generate(PROMPTS, Epsilon(epsilon=epsilon), 8, seed=4, num_return_sequences=4, stop=[[5]])
        assert len({tuple(one.tokens) for one in drawn}) > len(PROMPTS)
        for one in drawn:
            prompt = [BOS_ID, *lm.tokenizer.encode_batch([one.prompt])[0]]
            text = [*prompt, *one.tokens]
            logits = np.array(logits_of([text + [PAD_ID] * (WINDOW - len(text))])[0], np.float64)
            logits[:, [PAD_ID, BOS_ID, *range(len(PIECES), logits.shape[1])]] = -np.inf  # what generate bans
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            for place, token in enumerate(one.tokens, len(prompt) - 1):
                assert p[place, token] >= min(epsilon, p[place].max()) - 1e-5


def test_the_processor_bans_the_newest_token(lm: LanguageModel):
    for sampler in ("greedy", "random", "beam"):
        for one in lm.generate(PROMPTS, sampler, 12, processors=[no_echo], stop=[[5]]):
            [ids] = lm.tokenizer.encode_batch([one.prompt])
            text = [*ids, *one.tokens]
            assert all(a != b for a, b in zip(text[len(ids) - 1 :], text[len(ids) :], strict=False)) or not ids
            np.testing.assert_allclose(one.logprobs, full_pass_logprobs(lm, one.prompt, one.tokens), atol=1e-4)


def test_both_are_streamed_too(lm: LanguageModel):
    settings = {"seed": 3, "processors": [no_echo]}
    [whole] = lm.generate(["a b"], Epsilon(0.1), 16, **settings)
    assert "".join(lm.stream("a b", Epsilon(0.1), 16, **settings)) == whole.text


def test_a_function_and_a_class_are_compiled_once(lm: LanguageModel, compilations: list[str]):
    lm.generate(PROMPTS, Epsilon(0.1), 8, processors=[no_echo])
    compilations.clear()
    lm.generate(PROMPTS[:2], Epsilon(0.3), 7, seed=2, processors=(no_echo,))
    assert compilations == []
    lm.generate(PROMPTS, Epsilon(0.1), 8, processors=[lambda *arguments: no_echo(*arguments)])
    assert compilations != []
