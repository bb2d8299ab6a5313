"""GenerationSettings: the one list of what can be asked of generation, and its one check."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest

from minigpt_jax import GenerationSettings, LanguageModel, UserError, samplers
from minigpt_jax.config import options
from minigpt_jax.generate.settings import MAX_BIAS, SETTINGS


def test_values_become_plain_python():
    settings = GenerationSettings(
        max_new_tokens=np.int64(3),
        repetition_penalty=np.float32(1.5),
        stop=np.array([5]),
        logit_bias={np.int32(7): np.float32(2.0)},
    )
    assert settings == GenerationSettings(max_new_tokens=3, repetition_penalty=1.5, stop=(5,), logit_bias={7: 2.0})
    assert type(settings.max_new_tokens) is int
    assert type(settings.repetition_penalty) is float
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("given", "strings", "sequences"),
    [
        ("end", ["end"], []),
        (5, [], [[5]]),
        (["end", 5, [6, 7]], ["end"], [[5], [6, 7]]),
        (iter(["a", "b"]), ["a", "b"], []),
        ((), [], []),
    ],
)
def test_stops_are_strings_and_sequences_of_ids(given, strings, sequences):
    settings = GenerationSettings(stop=given)
    assert (settings.stop_strings, settings.stop_sequences) == (strings, sequences)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", 1.5, "whole number"),
        ("max_new_tokens", True, "whole number"),
        ("min_new_tokens", -1, "at least 0"),
        ("seed", 2**64, "below 18,446,744,073,709,551,616"),
        ("repetition_penalty", 0, "at least 0.0001"),
        ("repetition_penalty", float("nan"), "finite"),
        ("presence_penalty", 1e5, "at most 10,000"),
        ("frequency_penalty", "1", "must be a number"),
        ("no_repeat_ngram", -2, "at least 0"),
        ("num_return_sequences", 0, "at least 1"),
        ("num_return_sequences", 100_001, "at most 100,000"),
        ("presence_penalty", 10**400, "at most 10,000"),
        ("top_logprobs", -1, "at least 0"),
        ("stop", "", "leave it out"),
        ("stop", [[]], "leave it out"),
        ("stop", 1.5, "whole number"),
        ("logit_bias", [1.0], "must map token ids"),
        ("logit_bias", {"a": 1.0}, "whole number"),
        ("logit_bias", {5: float("nan")}, "must be a number"),
        ("logit_bias", {5: 10**400}, "from -1,000,000 to 1,000,000"),
        ("logit_bias", {5: -(10**400)}, "or -inf to ban the token"),
        ("processors", [3], "is no function"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_the_setting(setting, value, words):
    with pytest.raises(UserError) as refused:
        GenerationSettings(**{setting: value})
    line = str(refused.value)
    assert setting.replace("_", "-") in line
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_greatest_bias_is_that_of_a_request(sign: int):
    bias = lambda value: {"vocabulary_size": 2, "max_new_tokens": 1, "logit_bias": [0.0, value]}  # noqa: E731
    samplers.request([[1]], **bias(sign * MAX_BIAS))
    with pytest.raises(UserError, match="1,000,000"):
        samplers.request([[1]], **bias(sign * 1.01 * MAX_BIAS))


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(UserError, match="did you mean max_new_tokens"):
        GenerationSettings().replace(max_tokens=3)
    with pytest.raises(UserError, match=r"processor is not a field of GenerationSettings; did you mean processors\?"):
        GenerationSettings(processor=[])  # pyright: ignore[reportCallIssue]


def test_the_bounds_are_those_of_a_request():
    """Of every bound, the number at it is let through by `samplers.request`, and where it is finite a float's double is
    not."""
    shared = set(inspect.signature(samplers.request).parameters) & set(SETTINGS) - {"seed", "logit_bias"}
    for one in options(GenerationSettings()):
        for bound, beyond in ((one.facts.at_least, -1), (one.facts.at_most, 1)):
            if one.name not in shared or bound is None:
                continue
            request = lambda value, name=one.name: samplers.request(  # noqa: E731
                [[1]], vocabulary_size=9, **{"max_new_tokens": 1, name: value}
            )
            request(bound)
            if one.name != "max_new_tokens":
                with pytest.raises(UserError):
                    request(bound + beyond * max(abs(bound), 1))


@pytest.mark.parametrize("function", [LanguageModel.generate, LanguageModel.stream])
def test_signatures_list_every_setting(function):
    parameters = inspect.signature(function).parameters
    assert set(SETTINGS) <= set(parameters)
    for field in dataclasses.fields(GenerationSettings):
        if field.default is not dataclasses.MISSING:
            assert parameters[field.name].default == field.default
