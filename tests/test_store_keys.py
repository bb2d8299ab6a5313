"""The keys of cached tokenizers and token stores."""

import pytest

from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig, options
from minigpt_jax.data import store


def test_every_field_of_text_and_tokenizer_is_in_a_cache_key_or_in_a_fingerprint():
    of_the_text = {"corpus", "archive", "simplebooks", "files", "document", "json_field", "held_out"}
    by_fingerprint = {f"data.{name}" for name in {*of_the_text, "stories", "stories_seed"}} | {"tokenizer.start_id"}
    for option in options(Experiment("x")):
        if option.name.startswith(("data.", "tokenizer.")):
            assert bool(option.facts.caches) != (option.name in by_fingerprint), option.name


def test_keys_are_those_of_earlier_caches():
    lines = Experiment("x")
    assert store.keyed(lines, "tokenizer") == {
        "tokenizer": {"kind": "wordpiece", "vocabulary_size": 5000, "lowercase": True, "file": None},
        "min_bytes": 512,
    }
    rows = {"row_length": 129, "dtype": "uint16", "layouts": ["lines"] * 3, "min_bytes": 512}
    assert store.keyed(lines, "store") == rows
    packed = Experiment("x", DataConfig(layout="packed"), TokenizerConfig(exact=False, vocabulary_size=200))
    assert store.keyed(packed, "tokenizer")["tokenizer"]["exact"] is False
    rows = {"row_length": 129, "dtype": "uint8", "layouts": ["packed"] * 3, "min_bytes": None}
    assert store.keyed(packed, "store") == rows


SAME_STORE = {
    "evaluated as trained": ({"layout": "packed"}, {"layout": "packed", "evaluation_layout": "packed"}),
    "no document is dropped": ({"layout": "packed", "min_bytes": 9}, {"layout": "packed"}),
    "a larger anneal fraction": (
        {"layout": "packed", "evaluation_layout": "lines", "anneal_fraction": 0.1},
        {"layout": "packed", "evaluation_layout": "lines", "anneal_fraction": 0.2},
    ),
}


@pytest.mark.parametrize("case", SAME_STORE)
def test_values_that_mean_the_same_rows_share_a_store(case: str):
    one, other = (Experiment("x", data=DataConfig(**fields)) for fields in SAME_STORE[case])
    assert store.keyed(one, "store") == store.keyed(other, "store")


def test_the_anneal_fraction_changes_the_store_but_not_the_tokenizer():
    plain = Experiment("x", data=DataConfig(layout="packed", evaluation_layout="lines"))
    annealed = Experiment("x", data=DataConfig(layout="packed", evaluation_layout="lines", anneal_fraction=0.1))
    longer = Experiment("x", data=DataConfig(layout="packed", evaluation_layout="lines", min_bytes=9))
    assert store.keyed(plain, "store") != store.keyed(annealed, "store")
    assert store.keyed(plain, "tokenizer") == store.keyed(annealed, "tokenizer")
    for cache in ("store", "tokenizer"):
        assert store.keyed(plain, cache) != store.keyed(longer, cache)
