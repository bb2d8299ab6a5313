"""What extends generation from outside: samplers in files of the user's own, processors, and settings per prompt."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_experiment

from minigpt_jax import Beam, GenerationSettings, Greedy, LanguageModel, Random, UserError, samplers
from minigpt_jax.cli import main
from minigpt_jax.config import BOS_ID
from minigpt_jax.generate import methods
from minigpt_jax.trial.run import run
from tests.test_generate import PROMPTS, full_pass, language_model

SECOND_BEST = """
from dataclasses import dataclass

import jax.numpy as jnp
import minigpt_jax


@dataclass(frozen=True)
class Nth(minigpt_jax.Sampler):
    n: int = 2

    def pick(self, logits, key):
        return jnp.argsort(logits, axis=1, descending=True)[:, self.n - 1]
"""


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(num_layers=1)


@pytest.fixture
def nth(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(SECOND_BEST)
    return f"{file}:Nth"


def model_logprobs(lm: LanguageModel, prompt: str, tokens: list[int]) -> np.ndarray:
    """[M, V]: the log-probabilities in the place of each new token, from one full pass."""
    ids = [BOS_ID, *lm.tokenizer.encode_batch([prompt])[0]]
    return np.asarray(jax.nn.log_softmax(full_pass(lm, ids + tokens)))[len(ids) - 1 : -1]


def test_a_sampler_of_a_file_generates_and_streams(lm: LanguageModel, nth: str):
    best = lm.generate(PROMPTS, max_new_tokens=5)
    assert lm.generate(PROMPTS, f"{nth}:n=1", 5) == best
    second = lm.generate(PROMPTS, nth, 5)
    assert all(a.tokens[0] != b.tokens[0] for a, b in zip(best, second, strict=True))
    assert "".join(lm.stream(PROMPTS[0], nth, 5)) == second[0].text
    assert [one.label.rpartition(":Nth:")[2] for one in methods.parse(f"{nth}:n=1..3/3")] == ["n=1", "n=2", "n=3"]


@pytest.mark.parametrize("sampler", [Greedy(), Random(top_k=5), Beam(num_beams=3)])
def test_top_logprobs_are_the_models_most_probable_tokens(lm: LanguageModel, sampler: samplers.Sampler):
    for one in lm.generate(PROMPTS, sampler, 6, top_logprobs=3, repetition_penalty=1.5, logit_bias={7: -np.inf}):
        expected = model_logprobs(lm, one.prompt, one.tokens)
        assert one.top_logprobs is not None
        assert len(one.top_logprobs) == len(one.tokens)
        for place, logprobs in zip(one.top_logprobs, expected, strict=True):
            assert [top.id for top in place] == np.argsort(-logprobs, kind="stable")[:3].tolist()
            np.testing.assert_allclose([top.logprob for top in place], np.sort(logprobs)[::-1][:3], atol=1e-4)
            for top in place:
                assert top.text == (lm.tokenizer.decode([top.id]) if top.id < len(lm.tokenizer) else "")
    assert lm.generate("", sampler, 2)[0].top_logprobs is None


def only_even(logits, tokens, length, step):
    return jnp.where(jnp.arange(logits.shape[1])[None] % 2 == 0, logits, -jnp.inf)


def never_twice_in_a_row(logits, tokens, length, step):
    last = jnp.take_along_axis(tokens, (length + step - 1)[:, None], axis=1)
    return jnp.where(jnp.arange(logits.shape[1])[None] == last, -jnp.inf, logits)


@pytest.mark.parametrize("sampler", [Greedy(), Random(), Beam(num_beams=3)])
def test_processors_change_what_is_drawn(lm: LanguageModel, sampler: samplers.Sampler):
    for one in lm.generate(PROMPTS, sampler, 8, processors=[only_even, never_twice_in_a_row]):
        assert all(token % 2 == 0 for token in one.tokens)
        assert all(a != b for a, b in zip(one.tokens, one.tokens[1:], strict=False))
    streamed = "".join(lm.stream(PROMPTS[0], Greedy(), 8, processors=only_even))
    assert streamed == lm.generate(PROMPTS[0], Greedy(), 8, processors=[only_even])[0].text


def test_every_prompt_may_have_settings_of_its_own(lm: LanguageModel):
    settings = [
        GenerationSettings(max_new_tokens=7, seed=1, stop=["e", 9], top_logprobs=2),
        GenerationSettings(max_new_tokens=3, seed=2, repetition_penalty=2.0, num_return_sequences=2),
        GenerationSettings(max_new_tokens=9, seed=1, logit_bias={5: 3.0}, stop=[[4, 5]], min_new_tokens=4),
        GenerationSettings(max_new_tokens=5, seed=4, no_repeat_ngram=1, frequency_penalty=1.0, top_logprobs=1),
    ]
    together = lm.generate(PROMPTS, Random(), settings=settings)
    alone = [
        one
        for row, (prompt, asked) in enumerate(zip(PROMPTS, settings, strict=True))
        for one in lm.generate(prompt, Random(), settings=asked, row_ids=[row])
    ]
    assert [(one.tokens, one.text, one.finish_reason) for one in together] == [
        (one.tokens, one.text, one.finish_reason) for one in alone
    ]
    assert [one.top_logprobs and len(one.top_logprobs[0]) for one in together] == [2, None, None, None, 1]


def test_keywords_take_precedence_over_settings(lm: LanguageModel):
    settings = GenerationSettings(max_new_tokens=3, seed=1)
    assert lm.generate("a", Random(), 5, settings=settings) == lm.generate("a", Random(), 5, seed=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_logprobs": 99}, "--top-logprobs 99: the vocabulary has 64 tokens"),
        ({"settings": [GenerationSettings()]}, "1 given for 2 prompts"),
        ({"settings": [GenerationSettings(), GenerationSettings(processors=[only_even])]}, "processors: the prompts"),
        ({"sampler": Beam(3), "num_return_sequences": 4}, "--num-return-sequences 4: beam has 3 hypotheses"),
        ({"sampler": "contrastive", "num_return_sequences": 2}, "contrastive gives one text"),
        ({"sampler": "top_k:k=1,2"}, "stands for 2 methods"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(lm: LanguageModel, arguments: dict, words: str):
    with pytest.raises(UserError) as refused:
        lm.generate(["a", "b"], **arguments)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extensions") / "run"
    run(tiny_experiment.changed("train", steps=1), path)
    return path


def sample(run_dir: Path, capsys: pytest.CaptureFixture, *flags: str) -> list[dict]:
    """The lines of `sample --json` for one prompt."""
    capsys.readouterr()
    assert main(["sample", str(run_dir), "--prompt", "the fox", "--max-new-tokens", "3", "--json", *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_sample_takes_a_sampler_of_a_file(run_dir: Path, nth: str, capsys: pytest.CaptureFixture):
    [first] = sample(run_dir, capsys, "--sampler", f"{nth}:n=1", "--top-logprobs", "3")
    [second] = sample(run_dir, capsys, "--sampler", f"{nth}:n=2", "--top-logprobs", "3")
    assert first["tokens"][0] == first["top_logprobs"][0][0][0]
    assert second["tokens"][0] == first["top_logprobs"][0][1][0]
    assert [[[type(part) for part in top] for top in place] for place in first["top_logprobs"]] == [
        [[int, str, float]] * 3
    ] * 3


@pytest.mark.parametrize(
    "flags",
    [
        ["--top-k", "5", "--top-p", "0.8", "--temperature", "2"],
        ["--sampler", "random", "--top-k", "5", "--top-p", "0.8", "--temperature", "2"],
        ["--sampler", "random:top_p=0.8:temperature=2", "--top-k", "5"],
    ],
)
def test_sample_combines_filters(run_dir: Path, capsys: pytest.CaptureFixture, flags: list[str]):
    [whole] = sample(run_dir, capsys, "--sampler", "random:top_k=5:top_p=0.8:temperature=2")
    assert sample(run_dir, capsys, *flags) == [whole]


def test_sample_compares_the_values_of_a_setting(run_dir: Path, capsys: pytest.CaptureFixture):
    lines = sample(run_dir, capsys, "--compare", "--sampler", "top_k:k=1,3")
    assert [line["settings"]["k"] for line in lines] == [1, 3]
    assert main(["sample", str(run_dir), "--sampler", "top_k:k=1,3"]) == 2
    assert "add --compare" in capsys.readouterr().err
