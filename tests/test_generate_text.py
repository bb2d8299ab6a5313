"""What a caller gives and what a reader sees: types of arguments, stops, whole texts, and rows that bans end."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minigpt_jax import samplers
from minigpt_jax.config import BOS_ID, PAD_ID
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.generate.texts import StopScanner, settled, without_partial_stop
from tests.test_generate import PIECES, PROMPTS, language_model

DRAWN = samplers.Random(temperature=1.5)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope", num_heads=2)


def test_a_string_is_one_prompt_and_one_text(lm: LanguageModel):
    assert lm.generate("the cat", max_new_tokens=3) == lm.generate(["the cat"], max_new_tokens=3)
    assert lm.score("the cat") == lm.score(["the cat"])


def test_on_cpu_text_is_sampled_in_float32_whatever_the_run_was_trained_in(lm: LanguageModel):
    trained = language_model(positions="rope", num_heads=2, dtype="bfloat16")
    for sampler in (DRAWN, samplers.Beam(3), samplers.Contrastive(3)):
        assert trained.generate(PROMPTS, sampler, 6) == lm.generate(PROMPTS, sampler, 6)
    assert trained.score(PROMPTS) != lm.score(PROMPTS)  # the full pass keeps the type of training


def test_a_sampler_may_be_named(lm: LanguageModel):
    named = lm.generate(PROMPTS, "top-p", 6, seed=3)
    assert named == lm.generate(PROMPTS, samplers.TopP(), 6, seed=3)


def test_numpy_numbers_and_generators_are_taken(lm: LanguageModel):
    plain = lm.generate(PROMPTS, DRAWN, 6, seed=3, row_ids=[4, 5, 6, 7], stop=[5])
    given = lm.generate(
        (prompt for prompt in np.array(PROMPTS)),
        DRAWN,
        np.int64(6),  # pyright: ignore[reportArgumentType]
        seed=np.int32(3),  # pyright: ignore[reportArgumentType]
        row_ids=np.arange(4, 8),  # pyright: ignore[reportArgumentType]
        stop=np.array([5]),  # pyright: ignore[reportArgumentType]
    )
    assert given == plain


WRONG: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": 7},
    "prompts: 1": {"prompts": [1]},
    "prompts: None": {"prompts": [None, "a"]},
    "sampler 3": {"sampler": 3},
    "sampler <class": {"sampler": samplers.TopP},
    "--sampler topp": {"sampler": "topp"},
    "--seed 1.5": {"seed": 1.5},
    "--max-new-tokens 3": {"max_new_tokens": "3"},
    "--max-new-tokens 3000000000": {"max_new_tokens": 3_000_000_000},
    "--min-new-tokens None": {"min_new_tokens": None},
    "--repetition-penalty 2": {"repetition_penalty": "2"},
    "--repetition-penalty 1e-40": {"repetition_penalty": 1e-40},
    "--presence-penalty 1e+38": {"presence_penalty": 1e38},
    "--temperature 1e+38": {"sampler": samplers.Random(temperature=1e38)},
    "--temperature 1e-40": {"sampler": samplers.Random(temperature=1e-40)},
    "--logit-bias": {"logit_bias": {5: 1e38}},
    "no_such is not a field of GenerationSettings": {"no_such": 1},
    "max_tokens is not a field of GenerationSettings; did you mean max_new_tokens?": {"max_tokens": 1},
    "settings 3": {"settings": 3},
    "processors": {"processors": "x"},
    "--logit-bias 5 'a'": {"logit_bias": {5: "a"}},
    "row_ids 'a'": {"row_ids": "ab"},
    "row_ids 5: give": {"row_ids": 5},
    "--logit-bias 5 1000": {"logit_bias": {5: 10**400}},
    "--p '0.9'": {"sampler": samplers.TopP(p="0.9")},  # pyright: ignore[reportArgumentType]
    "--num-beams 2.5": {"sampler": samplers.Beam(num_beams=2.5)},  # pyright: ignore[reportArgumentType]
    "--num-return-sequences 200000000": {"sampler": DRAWN, "num_return_sequences": 200_000_000},
    "row_ids: give": {"row_ids": [0, 2**32]},
    "--stop None": {"stop": [None]},
    "--stop: must be": {"stop": b"ab"},
    "--logit-bias bans every token": {"logit_bias": dict.fromkeys(range(len(PIECES)), -math.inf)},
}


@pytest.mark.parametrize("start", WRONG)
def test_a_wrong_argument_is_one_clear_line(lm: LanguageModel, start: str):
    with pytest.raises(UserError) as refused:
        lm.generate(**{"prompts": ["a", "b b"], **WRONG[start]})
    assert str(refused.value).startswith(start)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sampler", [samplers.Greedy(), DRAWN, samplers.Beam(num_beams=3)])
def test_the_full_text_is_prompt_and_text_decoded_as_one(lm: LanguageModel, sampler: samplers.Sampler):
    for generation in lm.generate(["the ca", "", "hello ."], sampler, 9):
        prompt = lm.tokenizer.encode_batch([generation.prompt])[0]
        assert generation.full_text == lm.tokenizer.decode(prompt + generation.tokens)
        assert generation.full_text.endswith(generation.text.removeprefix("##"))


def first_complete(
    lm: LanguageModel, tokens: Sequence[int], stops: Sequence[str], least: int
) -> tuple[int, str] | None:
    """By definition: the first token with which a stop is complete that was not so after the first `least` tokens."""
    decode = lm.tokenizer.decode
    for n in range(least + 1, len(tokens) + 1):
        early, text = decode(list(tokens[:least])), decode(list(tokens[:n]))
        begins = [
            begin
            for stop in stops
            for begin in range(len(text))
            if text.startswith(stop, begin) and begin + len(stop) > len(early)
        ]
        if begins:
            return n, text[: min(begins)]
    return None


@pytest.mark.parametrize("stops", [["a"], ["b", "e"], [" t", "d f", "the"], ["no such text"], ["q", "z", "."]])
@pytest.mark.parametrize("least", [0, 5, 16])
def test_a_stop_ends_a_text_at_the_token_that_completes_it(lm: LanguageModel, stops: list[str], least: int):
    whole = lm.generate(PROMPTS, DRAWN, 20, seed=2)
    got = lm.generate(PROMPTS, DRAWN, 20, seed=2, stop=stops, min_new_tokens=least)
    for plain, one in zip(whole, got, strict=True):
        expected = first_complete(lm, plain.tokens, stops, least)
        if expected is None:
            assert (one.tokens, one.text, one.finish_reason) == (plain.tokens, plain.text, "length")
            continue
        count, text = expected
        assert (one.tokens, one.text, one.finish_reason) == (plain.tokens[:count], text, "stop")
        assert one.score == pytest.approx(math.fsum(one.logprobs))
        assert len(one.logprobs) == count


@pytest.mark.parametrize("stop", [["b", "e"], [" t", "d f"], [5], [[6, 7], "a"], [[8, 9, 10]]])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_text_and_takes_nothing_back(lm: LanguageModel, stop: list[Any], seed: int):
    [whole] = lm.generate("the cat", DRAWN, 20, seed=seed, stop=stop)
    assert "".join(lm.stream("the cat", DRAWN, 20, seed=seed, stop=stop)) == whole.text
    assert "".join(lm.stream("the cat", DRAWN, 20, seed=seed, stop=stop, full=True)) == whole.full_text


@pytest.mark.parametrize("count", [1, 2, 5])
def test_strings_and_ids_stop_a_text_at_the_same_token(lm: LanguageModel, count: int):
    """A stop has to be completed by a token after the first `min_new_tokens` ones, as in Transformers and vLLM."""
    words = {i: float("-inf") for i, piece in enumerate(PIECES) if piece.startswith("##")}
    asked: dict[str, Any] = {"seed": 3, "logit_bias": words, "no_repeat_ngram": 1}
    [plain] = lm.generate("the cat", DRAWN, 12, **asked)
    token = plain.tokens[count - 1]
    for stop in (token, PIECES[token]):
        [one] = lm.generate("the cat", DRAWN, 12, stop=[stop], min_new_tokens=count - 1, **asked)
        assert (one.tokens, one.finish_reason) == (plain.tokens[:count], "stop")
        [longer] = lm.generate("the cat", DRAWN, 12, stop=[stop], min_new_tokens=count, **asked)
        assert len(longer.tokens) > count


def test_a_stop_of_ids_is_no_part_of_the_text(lm: LanguageModel):
    [plain] = lm.generate("the cat", DRAWN, 12, seed=1)
    last = plain.tokens[3:6]
    [one] = lm.generate("the cat", DRAWN, 12, seed=1, stop=[last])
    assert one.tokens == plain.tokens[: len(one.tokens)]
    assert one.finish_reason == "stop"
    assert one.text == lm.tokenizer.decode(one.tokens[: -len(last)])


@pytest.mark.parametrize(
    "sampler",
    [samplers.Greedy(), DRAWN, samplers.TopK(4), samplers.TopP(0.9), samplers.Beam(3), samplers.Contrastive(3)],
)
def test_a_row_that_bans_leave_nothing_ends_as_banned(lm: LanguageModel, sampler: samplers.Sampler):
    """Three tokens may be drawn, none of them twice."""
    allowed = {10, 11, 12}
    bans = {token: -math.inf for token in range(len(PIECES)) if token not in allowed}
    for one in lm.generate(["", "the", "."], sampler, 9, logit_bias=bans, no_repeat_ngram=1):
        assert one.finish_reason == "banned"
        assert set(one.tokens) == allowed
        assert len(one.tokens) == 3
        assert all(math.isfinite(logprob) for logprob in one.logprobs)


def test_nothing_without_a_piece_is_ever_drawn(lm: LanguageModel):
    for one in lm.generate(PROMPTS, samplers.Random(temperature=1e6), 200, no_repeat_ngram=1):
        assert one.finish_reason == "banned"
        assert not {PAD_ID, BOS_ID} & set(one.tokens)
        assert max(one.tokens) < len(PIECES)


def test_copies_draw_apart_from_every_row(lm: LanguageModel):
    """The second copy of row 0 drew what row 2^20 draws, when copies were further rows."""
    apart = lm.generate(["a", "a"], DRAWN, 12, row_ids=[0, 1 << 20], num_return_sequences=2)
    assert len({tuple(one.tokens) for one in apart}) == 4
    alone = lm.generate("a", DRAWN, 12, num_return_sequences=5)
    assert alone[0] == lm.generate("a", DRAWN, 12)[0]
    assert alone[:2] == apart[:2]


def test_the_scanner_is_independent_of_the_chunks():
    words = ["one ", "two ", "three ", "tw", "o ", "four"]
    decode = lambda tokens: "".join(words[token] for token in tokens)  # noqa: E731
    for cuts in ([6], [1, 2, 3, 4, 5, 6], [2, 5, 6]):
        scanner = StopScanner(["two"], decode, 3)
        found = [scanner.scan(list(range(cut))) for cut in cuts]
        assert found[-1]
        assert (scanner.tokens, scanner.text) == (5, "one two three ")


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("a fox na", ["named"], "a fox"),
        ("a fox", ["y", "xyz"], "a fo"),
        ("a fox", ["b"], "a fox"),
        ("aa", ["aab"], ""),
        ("an o -", ["o-f"], "an"),
    ],
)
def test_what_may_begin_a_stop_is_held_back(text: str, stops: list[str], kept: str):
    assert without_partial_stop(text, stops) == kept


@pytest.mark.parametrize(
    ("text", "whole"),
    [("the ca", "the"), ("从前有一", "从前有一"), ("从前\ufffd", "从前"), ("ab", ""), ("从前 ab", "从前"), ("", "")],
)
def test_wide_characters_settle_one_by_one(text: str, whole: str):
    assert settled(text) == whole


def test_repr_is_short(lm: LanguageModel):
    [one] = lm.generate("the cat", max_new_tokens=3)
    assert repr(lm) == "LanguageModel('random', 2 layers of 16, 57 pieces, window 24, step None)"
    assert len(repr(one)) < 120
    assert one.full_text in repr(one)
