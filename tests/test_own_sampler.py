"""Samplers of the user's own: a frozen dataclass outside the package, with one method."""

import dataclasses
import functools
import importlib.util
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import Sampler, samplers
from minigpt_jax.errors import UserError

V, ROOM, WIDTH = 19, 10, 5
MODEL = FakeModel(hashing(V, WIDTH + ROOM, width=2), WIDTH + ROOM)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]
LIMITS = [10, 6, 8]

FILE = """{future}
from dataclasses import dataclass
from typing import Optional

import jax
import minigpt_jax


@dataclass(frozen=True)
class Noisy(minigpt_jax.Sampler):
    temperature: {float} = 1.0
    shift: {int} = 0
    floor: {optional} = None

    def pick(self, logits, key):
        assert isinstance(self.temperature, jax.Array) and self.temperature.dtype == "float32"
        assert isinstance(self.shift, jax.Array) and self.shift.dtype == "int32"
        logits = logits / self.temperature
        if self.floor is not None:
            logits = jax.numpy.where(logits > self.floor, logits, -jax.numpy.inf)
        return (jax.vmap(jax.random.categorical)(key, logits) + self.shift) % logits.shape[1]
"""
STYLES = {
    "plain": {"future": "", "float": "float", "int": "int", "optional": "float | None"},
    "strings": {"future": "", "float": "'float'", "int": "'int'", "optional": "'Optional[float]'"},
    "future": {
        "future": "from __future__ import annotations",
        "float": "float",
        "int": "int",
        "optional": "Optional[float]",
    },
}


@pytest.fixture(params=STYLES)
def noisy(request, tmp_path, monkeypatch):
    """The class `Noisy` from a file of its own, annotated in one of the styles."""
    file = tmp_path / "noisy.py"
    file.write_text(FILE.format(**STYLES[request.param]))
    spec = importlib.util.spec_from_file_location("noisy_file", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "noisy_file", module)  # where dataclasses look up names in annotations
    spec.loader.exec_module(module)
    return module.Noisy


traces = []


def search(sampler, **settings):
    request = samplers.request(PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, **settings)
    return jax.tree.map(np.asarray, _decode(sampler, request))


@jax.jit
def _decode(sampler, request):
    traces.append(type(sampler))
    return samplers.decode(MODEL.prefill, MODEL.step, sampler, request, ROOM)


def test_its_settings_are_traced_whatever_the_style_of_annotations(noisy):
    traces.clear()
    drawn = search(noisy(temperature=0.7), stops=[[5]])
    for settings in ({"temperature": 2}, {"temperature": np.float64(0.1), "shift": 3}, {"shift": np.int64(1)}):
        assert not np.array_equal(search(noisy(**settings), stops=[[5]]).tokens, drawn.tokens)
    assert traces == [noisy]
    search(noisy(floor=0))
    search(noisy(floor=-0.5))
    assert traces == [noisy, noisy]  # None or a number is static, the number is not


def test_it_draws_by_each_rows_key(noisy):
    whole = search(noisy(temperature=0.8), seed=3, stops=[[5]])
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        alone = samplers.request(
            [prompt], vocabulary_size=V, max_new_tokens=limit, width=WIDTH, row_ids=[row], seed=3, stops=[[5]]
        )
        np.testing.assert_array_equal(_decode(noisy(temperature=0.8), alone).tokens[0], whole.tokens[row])
    assert whole.length[:, 0].tolist() != LIMITS or not whole.stopped.any()


@dataclass(frozen=True)
class Nth(Sampler):
    """The n-th best token, n being static, and of the even or of all tokens."""

    n: int = dataclasses.field(default=1, metadata={"static": True})
    parity: str = dataclasses.field(default="all", metadata={"static": True})

    def pick(self, logits, key):
        if self.parity == "even":
            logits = jnp.where(jnp.arange(logits.shape[1])[None] % 2 == 0, logits, -jnp.inf)
        return jax.lax.top_k(logits, self.n)[1][:, self.n - 1]


def test_static_fields_are_plain_values_and_make_programs_of_their_own():
    traces.clear()
    for sampler in (Nth(2), Nth(3, "even"), Nth(2)):
        output = search(sampler)
        for prompt, tokens, limit in zip(PROMPTS, output.tokens[:, 0], LIMITS, strict=True):
            text = list(prompt)
            for _ in range(limit):
                logits = MODEL.logits(text)
                allowed = np.arange(V) if sampler.parity == "all" else np.arange(0, V, 2)
                text.append(int(allowed[np.argsort(-logits[allowed])[sampler.n - 1]]))
            assert tokens[:limit].tolist() == text[len(prompt) :]
    assert traces == [Nth, Nth]


def test_a_class_that_is_made_anew_is_compiled_anew():
    """As where a notebook's cell is run again with another body."""

    def make(index):
        @dataclass(frozen=True)
        class Mine(Sampler):
            def pick(self, logits, key):
                return jnp.full(logits.shape[0], index)

        return Mine()

    for index in (3, 4):
        assert (search(make(index)).tokens[0, 0] == index).all()


def test_facts_about_classes():
    facts = {name: (kind.streams, kind.draws, kind.ranks) for name, kind in samplers.METHODS.items()}
    assert {name for name, (streams, _, _) in facts.items() if not streams} == {"beam"}
    assert {name for name, (_, draws, _) in facts.items() if not draws} == {"greedy", "beam", "contrastive"}
    assert {name for name, (_, _, ranks) in facts.items() if ranks} == {"beam"}
    assert (Nth.name, Nth.streams, Nth.draws, Nth.ranks) == ("Nth", True, True, False)


@dataclass(frozen=True)
class Broken(Sampler):
    answer: int = 0

    def pick(self, logits, key):
        return [logits.argmax(axis=1)[:1], logits.max(axis=1)][self.kind]

    kind = 0


class Wrong(Broken):
    kind = 1


@dataclass(frozen=True)
class Worded(Sampler):
    word: str = "x"


@dataclass(frozen=True)
class Idle(Sampler):
    pass


@dataclass(frozen=True)
class Branching(Sampler):
    n: int = 1

    def pick(self, logits, key):
        if self.n > 1:
            return logits.argmin(axis=1)
        return logits.argmax(axis=1)


class Slicing(Branching):
    def pick(self, logits, key):
        return logits[:, : self.n].argmax(axis=1)


class OneArgument(Branching):
    def pick(self, logits):
        return logits.argmax(axis=1)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (OneArgument(), ["OneArgument.pick is called with (logits, key), but its signature is (logits)"]),
        (Branching(), ["Branching.pick (", f"{__file__}, line", "TracerBoolConversionError", "jnp.where", "static"]),
        (Slicing(), ["Slicing.pick (", f"{__file__}, line", "IndexError", 'field(metadata={"static": True})']),
        (Broken(), ["Broken.pick", "int32[1]", "[3]"]),
        (Wrong(), ["Wrong.pick", "float32[3]", "whole number"]),
        (Broken(1.5), ["Broken", "answer=1.5", "whole number"]),  # type: ignore[arg-type]
        (Broken(float("inf")), ["Broken", "answer=inf", "32 bits"]),  # type: ignore[arg-type]
        (Broken(3_000_000_000), ["Broken", "answer=3000000000", "32 bits"]),
        (Broken(10**400), ["Broken", "32 bits"]),
        (Worded(), ["Worded", "word='x'", "static"]),
        (Idle(), ["Idle", "pick(self, logits, key)"]),
    ],
    ids=lambda case: type(case).__name__,
)
def test_mistakes_are_told_in_one_line(sampler, words):
    with pytest.raises(UserError) as error:
        search(sampler)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_samplers_are_values_and_survive_tree_maps():
    for sampler in (Nth(2), samplers.Random(0.5, top_k=3), samplers.Beam(3), samplers.Contrastive(5)):
        again = jax.tree.map(lambda leaf: leaf, sampler)
        assert type(again) is type(sampler)
        assert jax.tree.structure(again) == jax.tree.structure(sampler)
        assert again.width == sampler.width
        assert sampler == dataclasses.replace(sampler)
    assert functools.reduce(set.union, ({kind.name} for kind in samplers.METHODS.values())) == set(samplers.METHODS)
