"""The grammar of METHOD: `top_k:k=1,5`, `random:temperature=0.5..1.5/3`, `FILE.py:Name:setting=1`."""

import dataclasses
import re
from pathlib import Path

import pytest

from minigpt_jax import Beam, Contrastive, Greedy, Random, TopK, TopP, UserError, samplers
from minigpt_jax.cli.sample import MethodFlags
from minigpt_jax.generate import methods


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("greedy", {"greedy": Greedy()}),
        ("Top-P:p=0.5", {"top_p:p=0.5": TopP(p=0.5)}),
        ("top_p:p=0.9:temperature=0.8", {"top_p:p=0.9:temperature=0.8": TopP(p=0.9, temperature=0.8)}),
        ("beam:num-beams=4", {"beam:num_beams=4": Beam(num_beams=4)}),
        ("top_k:k=1,5,10,40", {f"top_k:k={k}": TopK(k=k) for k in (1, 5, 10, 40)}),
        (
            "random:temperature=0.5..1.5",
            {f"random:temperature={t:g}": Random(temperature=t) for t in (0.5, 0.75, 1.0, 1.25, 1.5)},
        ),
        (
            "random:temperature=.5..1.5/9",
            {f"random:temperature={0.5 + i / 8:g}": Random(temperature=0.5 + i / 8) for i in range(9)},
        ),
        ("top_k:k=1..3", {f"top_k:k={k}": TopK(k=k) for k in (1, 2, 3)}),
        ("top_k:k=1,10..20/3", {f"top_k:k={k}": TopK(k=k) for k in (1, 10, 15, 20)}),
        (
            "contrastive:k=2,4:alpha=0.2,0.6",
            {f"contrastive:k={k}:alpha={a}": Contrastive(k=k, alpha=a) for k in (2, 4) for a in (0.2, 0.6)},
        ),
    ],
)
def test_a_method_stands_for_samplers(text, expected):
    assert dict(methods.parse(text)) == expected


def test_a_range_of_tenths_has_no_rounding_in_it():
    temperatures = [one.sampler.temperature for one in methods.parse("random:temperature=0.1..0.9/9")]  # pyright: ignore[reportAttributeAccessIssue]
    assert temperatures == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize("text", ["top_p:p=0.90000001,0.90000002", "random:temperature=1.0000001,1"])
def test_labels_tell_all_values_apart(text: str):
    found = methods.parse(text)
    assert len({one.label for one in found}) == len({methods.label_of(one.sampler) for one in found}) == 2
    assert [methods.parse_one(one.label) for one in found] == [one.sampler for one in found]


def test_flags_add_settings():
    assert methods.parse_one("top_p:p=0.5", settings={"temperature": 0.7, "k": None}) == TopP(p=0.5, temperature=0.7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topk", "did you mean top_k?"),
        ("TopNSigma", "--sampler TopNSigma is not known; give one of greedy, beam"),
        ("viterbi", "give one of greedy, beam"),
        ("top_p:temprature=1", "top_p has no setting temprature; did you mean temperature?; it takes p, temperature"),
        ("greedy:k=1", "it takes no settings"),
        ("top_p:0.9", "write top_p:p=…"),
        ("top_k:k=two", "must be a whole number"),
        ("top_k:k=1.5", "must be a whole number"),
        ("top_p:p=", "must be a number"),
        ("top_p:p=0.5..", "must be a number"),
        ("top_p:p=0.5..1/x", "must be a whole number"),
        ("top_p:p=0.5..1/1", "2 to 1,000 values"),
        ("top_k:k=nan..5", "k=nan..5: the ends of a range must be finite numbers"),
        ("top_k:k=1..1e400", "must be finite numbers"),
        ("top_p:p=-inf..0.5", "must be finite numbers"),
        ("random:temperature=-1e308..1e308", "must be finite numbers"),  # their difference is none
        ("top_p:p=0.5:p=0.6", "given twice"),
        ("top_p:p=0..1/1000:temperature=1,2", "2,000 methods"),
        ("nowhere.py:Mine", "there is no nowhere.py"),
        ("nowhere.py", "nowhere.py:Name"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_right_choice(text, words):
    with pytest.raises(UserError) as refused:
        methods.parse(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_several_methods_where_one_is_wanted_point_to_compare():
    with pytest.raises(UserError, match="stands for 2 methods; give one value for each setting, or add --compare"):
        methods.parse_one("top_k:k=1,2")


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"p": 0.5}, "--p: --sampler top_p:p=0.9 gives p too"), ({"num_beams": 2}, "--num-beams is not a setting of")],
)
def test_a_flag_that_does_not_go_with_the_method_is_refused(flags, words):
    with pytest.raises(UserError) as refused:
        methods.parse("top_p:p=0.9", settings=flags)
    assert words in str(refused.value)


def test_every_setting_of_a_method_is_a_flag():
    flags = {field.name for field in dataclasses.fields(MethodFlags)}
    assert flags == {setting for method in samplers.METHODS.values() for setting in methods.settings_of(method)}


def test_annotations_of_a_users_sampler_may_be_of_any_style(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "from typing import TYPE_CHECKING, Optional\n"
        "import minigpt_jax\n"
        "if TYPE_CHECKING:\n    from nowhere import Count\n"
        "@dataclass(frozen=True)\n"
        "class Mine(minigpt_jax.Sampler):\n"
        "    a: Optional[int] = None\n    b: float | None = None\n    c: bool = False\n    d: Count = None\n"
        "    e: str = field(default='x', metadata={'static': True})\n"
    )
    mine = methods.parse_one(f"{tmp_path}/mine.py:Mine:a=3:b=2:c=true:e=y")
    assert [mine.a, mine.b, mine.c, mine.e] == [3, 2.0, True, "y"]  # pyright: ignore[reportAttributeAccessIssue]


def test_files_of_the_users_own_that_cannot_be(tmp_path: Path):
    file = tmp_path / "mine.py"
    for source, words in {
        "import nowhere_at_all": f"{file}, line 1: ModuleNotFoundError",
        "def Mime(): ...": "defines no function or class Mine; did you mean Mime?",
        "def Mine(): ...": "is no sampler; make it a subclass of minigpt_jax.Sampler",
        "def Mine(": f"{file}, line 1: SyntaxError",
    }.items():
        file.write_text(source)
        with pytest.raises(UserError) as refused:
            methods.parse(f"{file}:Mine")
        assert words in str(refused.value), str(refused.value)
        assert "\n" not in str(refused.value)


OWN = """\
from dataclasses import dataclass
import minigpt_jax

@dataclass(frozen=True)
class Need(minigpt_jax.Sampler):
    n: int

class Plain(minigpt_jax.Sampler):
    n: int = 2

@dataclass(frozen=True)
class Bare(minigpt_jax.Sampler):
    n = 2
"""


@pytest.mark.parametrize(
    ("method", "flags", "words"),
    [
        ("Need", {}, "mine.py:Need: n has no default; give {file}:Need:n=…"),
        ("Need:n=3", {"temperature": 0.5}, "give its settings after its name, as in {file}:Need:n=…"),
        ("Plain:n=3", {}, "takes no settings (a setting is an annotated field of a @dataclass(frozen=True))"),
        ("Bare:n=3", {}, "takes no settings (a setting is an annotated field of a @dataclass(frozen=True))"),
        ("Need:m=3", {}, "it takes n (a setting is an annotated field"),
    ],
)
def test_settings_of_a_users_sampler_that_cannot_be(tmp_path: Path, method: str, flags: dict, words: str):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    with pytest.raises(UserError) as refused:
        methods.parse(f"{file}:{method}", settings=flags)
    assert words.format(file=file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_told_with_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"there is no mine.py in {tmp_path}; check the path")):
        methods.parse("mine.py:Mine")
