"""A model in this process: its texts, their log-probabilities, and that a row's text is its own."""

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import model, samplers
from minigpt_jax.config import BOS_ID, PAD_ID, DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.generate import Generation, LanguageModel
from minigpt_jax.tokenizer import WordPiece

PIECES = ["[PAD]", "[UNK]", "[BOS]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), ".", "the"]
ROWS = 64  # of the model; some have no piece
WINDOW = 24
PROMPTS = ["a b c", "", "the cat", "hello . the"]


def language_model(**choices: object) -> LanguageModel:
    experiment = Experiment(
        "random",
        data=DataConfig(layout="packed", sequence_length=WINDOW),
        tokenizer=TokenizerConfig(vocabulary_size=ROWS),
        model=ModelConfig(**{"num_layers": 2, "width": 16, "num_heads": 2, "feed_forward": 32, **choices}),  # type: ignore[arg-type]
    )
    params = jax.jit(model.build(experiment).init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    sharp = jax.tree.map(lambda x: 2.0 * x, params)  # so that the model has opinions
    return LanguageModel(experiment, WordPiece(PIECES), sharp)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model()


def full_pass_logprobs(lm: LanguageModel, prompt: str, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of the tokens after the prompt, from one full pass."""
    head = [BOS_ID, *lm.tokenizer.encode_batch([prompt])[0]]
    logits = full_pass(lm, head + tokens)[len(head) - 1 : -1]
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return logprobs[np.arange(len(tokens)), tokens]


def full_pass(lm: LanguageModel, ids: list[int]) -> np.ndarray:
    """The logits after each of the ids, by a program that serves all lengths up to a multiple of the window."""
    padded = np.full((1, -(-len(ids) // WINDOW) * WINDOW), PAD_ID)
    padded[0, : len(ids)] = ids
    return np.asarray(_logits(lm.model, lm.weights, padded))[0, : len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def _logits(module: model.GPT, weights: Any, ids: np.ndarray) -> Any:
    return module.apply({"params": weights}, ids)


SAMPLERS = [
    samplers.Greedy(),
    samplers.Random(),
    samplers.TopK(k=5),
    samplers.TopP(p=0.8, temperature=0.7),
    samplers.MinP(p=0.1),
    samplers.Typical(p=0.8),
    samplers.Contrastive(k=4, alpha=0.5),
    samplers.Beam(num_beams=3),
]


@pytest.fixture(scope="module")
def modern() -> LanguageModel:
    """Each step needs more than keys and values: inputs of convolutions longer than most prompts, and the tokens."""
    lm = language_model(
        convolution=12, head_gate=True, pointer=8, positions="rope", norm_position="pre", tied_embeddings=True
    )
    keys = iter(jax.random.split(jax.random.key(2), 99))

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        if path[-1].key == "sentinel_bias":
            return jnp.zeros_like(leaf)
        return 0.5 * jax.random.normal(next(keys), leaf.shape) if path[-1].key == "taps" else leaf

    lm.weights = jax.tree_util.tree_map_with_path(draw, lm.weights)
    return lm


@pytest.mark.parametrize("name", ["lm", "modern"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_logprobs_are_the_models_own(request: pytest.FixtureRequest, sampler: samplers.Sampler, name: str):
    lm: LanguageModel = request.getfixturevalue(name)
    for generation in lm.generate(PROMPTS, sampler, 8, repetition_penalty=1.3):
        assert len(generation.tokens) == len(generation.logprobs) == 8
        assert generation.finish_reason == "length"
        assert generation.text == lm.tokenizer.decode(generation.tokens)
        expected = full_pass_logprobs(lm, generation.prompt, generation.tokens)
        np.testing.assert_allclose(generation.logprobs, expected, atol=1e-4)


def test_greedy_takes_the_most_probable_of_all_pieces(lm: LanguageModel):
    for generation in lm.generate(PROMPTS, max_new_tokens=6):
        head = [BOS_ID, *lm.tokenizer.encode_batch([generation.prompt])[0]]
        for token in generation.tokens:
            logits = full_pass(lm, head)[-1]
            allowed = [i for i in range(len(PIECES)) if i not in (PAD_ID, BOS_ID)]
            assert token == allowed[int(np.argmax(logits[allowed]))]
            head.append(token)


@pytest.mark.parametrize("sampler", [samplers.Random(), samplers.TopP(p=0.9)], ids=lambda s: type(s).__name__)
def test_a_rows_text_is_its_own(lm: LanguageModel, sampler: samplers.Sampler):
    many = [PROMPTS[i % len(PROMPTS)] for i in range(ROWS)]
    together = lm.generate(many, sampler, 10, seed=0)
    for row in (0, 17, 63):
        [alone] = lm.generate([many[row]], sampler, 10, seed=0, row_ids=[row])
        assert alone.tokens == together[row].tokens
    backwards = lm.generate(many[::-1], sampler, 10, seed=0, row_ids=range(ROWS)[::-1])
    assert [g.tokens for g in backwards[::-1]] == [g.tokens for g in together]
    other_seed = lm.generate(many, sampler, 10, seed=1)
    assert sum(a.tokens != b.tokens for a, b in zip(together, other_seed, strict=True)) > ROWS // 2
    assert len({tuple(g.tokens) for g in together if not g.prompt}) > ROWS // 8


def test_what_has_no_piece_is_never_sampled_unless_asked_for():
    lm = language_model()
    bias = jnp.zeros(ROWS).at[jnp.array([PAD_ID, BOS_ID, ROWS - 1])].set(50.0)
    lm.weights = {**lm.weights, "output": {**lm.weights["output"], "bias": bias}}
    for generation in lm.generate(PROMPTS, samplers.Random(), 10):
        assert not {PAD_ID, BOS_ID} & set(generation.tokens)
        assert max(generation.tokens) < len(PIECES)
    ended = lm.generate(PROMPTS, samplers.Greedy(), 10, stop=lm.end_id, logit_bias={PAD_ID: -np.inf})
    assert [(g.tokens, g.finish_reason, g.text) for g in ended] == [([BOS_ID], "stop", "")] * len(PROMPTS)


def test_stop_tokens_and_strings(lm: LanguageModel):
    [whole] = lm.generate(["a b c"], samplers.Random(), 16, seed=3)
    sequence = whole.tokens[5:7]
    first = next(i for i in range(16) if whole.tokens[i : i + 2] == sequence)
    [by_tokens] = lm.generate(["a b c"], samplers.Random(), 16, seed=3, stop=[sequence])
    assert (by_tokens.tokens, by_tokens.finish_reason) == (whole.tokens[: first + 2], "stop")

    middle = whole.text[len(whole.text) // 2 :][:3]
    [by_string] = lm.generate(["a b c"], samplers.Random(), 16, seed=3, stop=middle)
    assert by_string.finish_reason == "stop"
    assert by_string.text == whole.text[: whole.text.index(middle)]
    assert whole.tokens[: len(by_string.tokens)] == by_string.tokens
    assert len(by_string.tokens) == len(by_string.logprobs) < 16
    assert middle in lm.tokenizer.decode(by_string.tokens)
    assert middle not in lm.tokenizer.decode(by_string.tokens[:-1])


def test_a_string_stops_its_own_row_alone(lm: LanguageModel):
    whole = lm.generate(PROMPTS, samplers.Random(), 16, seed=3)
    stop = whole[0].text[:2]
    for before, after in zip(whole, lm.generate(PROMPTS, samplers.Random(), 16, seed=3, stop=stop), strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.finish_reason == ("stop" if stop in before.text else "length")


@pytest.mark.parametrize("seed", range(3))
def test_streamed_text_is_the_text(lm: LanguageModel, seed: int):
    parts = list(lm.stream("a b", samplers.Random(), 16, seed=seed))
    assert "".join(parts) == lm.generate(["a b"], samplers.Random(), 16, seed=seed)[0].text
    assert len(parts) > 1


def test_several_texts_for_each_prompt(lm: LanguageModel):
    drawn = lm.generate(PROMPTS, samplers.Random(), 8, num_return_sequences=3)
    assert [g.prompt for g in drawn] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len({tuple(g.tokens) for g in drawn[:3]}) == 3
    assert [g.tokens for g in drawn[::3]] == [g.tokens for g in lm.generate(PROMPTS, samplers.Random(), 8)]

    beams = lm.generate(PROMPTS, samplers.Beam(num_beams=4), 8, num_return_sequences=3)
    for i in range(0, len(beams), 3):
        scores = [g.score for g in beams[i : i + 3]]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(g.tokens) for g in beams[i : i + 3]}) == 3


def test_score_is_the_sum_of_log_probabilities(lm: LanguageModel):
    texts = ["the cat . a dog", "b", "the the the"]
    expected = [full_pass_logprobs(lm, "", lm.tokenizer.encode_batch([text])[0]).sum() for text in texts]
    np.testing.assert_allclose(lm.score(texts), expected, rtol=1e-5)


def test_rotary_positions_go_on_past_the_window():
    lm = language_model(positions="rope")
    [generation] = lm.generate(["a b c"], samplers.Greedy(), 3 * WINDOW)
    assert len(generation.tokens) == 3 * WINDOW
    within = lm.generate(["a b c"], samplers.Greedy(), WINDOW - 4)[0].tokens
    assert generation.tokens[: len(within)] == within


def test_settings_never_compile_anew(lm: LanguageModel, compilations: list[str]):
    lm.generate(PROMPTS, samplers.TopP(p=0.9), 8)
    compilations.clear()
    lm.generate(PROMPTS[:3], samplers.TopP(p=0.5, temperature=2.0), 7, seed=5, stop=[3, [4, 5]], repetition_penalty=2.0)
    lm.generate(["a b c d e"], samplers.TopP(p=1), 8, no_repeat_ngram=2, logit_bias={5: 2.0}, min_new_tokens=2)
    lm.weights = jax.tree.map(lambda x: x + 0.0, lm.weights)
    compilations.clear()
    lm.generate(PROMPTS, samplers.TopP(p=0.3), 6, frequency_penalty=0.5, row_ids=[9, 8, 7, 6])
    assert compilations == []


REFUSED = {
    "--k 0": {"sampler": samplers.TopK(k=0)},
    "--k 100": {"sampler": samplers.TopK(k=100)},
    "--p 0.0": {"sampler": samplers.TopP(p=0.0)},
    "--p 1.5": {"sampler": samplers.TopP(p=1.5)},
    "--temperature -1.0": {"sampler": samplers.Random(temperature=-1.0)},
    "--alpha 2.0": {"sampler": samplers.Contrastive(alpha=2.0)},
    "--num-beams 0": {"sampler": samplers.Beam(num_beams=0)},
    "--max-new-tokens 0": {"max_new_tokens": 0},
    "--max-new-tokens 24": {"max_new_tokens": 24},
    "--prompt 'a a a": {"prompts": ["a " * WINDOW]},
    "--stop": {"stop": "x", "sampler": samplers.Beam()},
    "--stop ''": {"stop": ""},
    "--logit-bias 99": {"logit_bias": {99: 1.0}},
    "--seed": {"seed": 2**64},
    "row_ids": {"row_ids": [1]},
    "--num-return-sequences 2": {"num_return_sequences": 2},
}


@pytest.mark.parametrize("start", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(lm: LanguageModel, start: str):
    with pytest.raises(UserError) as refused:
        lm.generate(**{"prompts": ["a", "b b"], **REFUSED[start]})
    assert str(refused.value).startswith(start)
    assert "\n" not in str(refused.value)


def test_generation_is_plain_data(lm: LanguageModel):
    [generation] = lm.generate(["a"], max_new_tokens=2)
    assert isinstance(generation, Generation)
    assert all(type(token) is int for token in generation.tokens)
    assert all(type(logprob) is float for logprob in generation.logprobs)
    assert lm.generate([]) == []
