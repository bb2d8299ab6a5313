"""The examples in docstrings (`>>>`) are run, so that they keep telling the truth."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minigpt_jax"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0, "what differs is printed above"


def test_there_are_examples() -> None:
    assert {"minigpt_jax.rng", "minigpt_jax.samplers", "minigpt_jax.tokenizer.wordpiece"} <= set(MODULES)
