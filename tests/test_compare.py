"""`compare`: ways of sampling beside human text, in Python and on the command line."""

import csv
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_experiment
from pages import Page
from tiny import full_pass

from minigpt_jax import LanguageModel, TopP, UserError, generate
from minigpt_jax.cli import main
from minigpt_jax.data.rows import Rows
from minigpt_jax.generate import verdict
from minigpt_jax.generate.held_out import HeldOut, held_out
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.trial.run import run

COLUMNS = (
    "method perplexity zipf self_bleu repetition repeated_4grams distinct_1 distinct_2 distinct_3 mauve "
    "tokens_per_second"
).split()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    run(tiny_experiment.EXPERIMENT, path)
    return path


@pytest.fixture(scope="module")
def lm(run_dir: Path) -> LanguageModel:
    return generate.load(run_dir)


@pytest.fixture(scope="module")
def pieces(run_dir: Path, lm: LanguageModel) -> list[HeldOut]:
    rows = Rows.load(RunDir(run_dir).rows("valid"))
    return held_out(rows, "packed", lm.tokenizer.special.start, lm.end_id, prompts=24, prompt_tokens=6, new_tokens=8)


def nats(lm: LanguageModel, piece: HeldOut) -> np.ndarray:
    """The nats of each token of a continuation, by a full pass over this text alone."""
    ids = [lm.tokenizer.special.start, *piece.prefix, *piece.continuation]
    logprobs = np.asarray(jax.nn.log_softmax(full_pass(lm.model, lm.weights, np.array([ids[:-1]]))[0]))
    first = len(piece.prefix)
    return -np.array([logprobs[i, ids[i + 1]] for i in range(first, len(ids) - 1)])


def test_the_files_and_the_table(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    methods = ["greedy", "top_k:k=1,2,5"]
    flags = ["--prompts", "24", "--prompt-tokens", "6", "--max-new-tokens", "8", "--out", str(out)]
    assert main(["compare", str(run_dir), *methods, *flags]) == 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["method"] for row in rows] == ["human", "greedy", "top_k:k=1", "top_k:k=2", "top_k:k=5"]
    assert rows[0]["tokens_per_second"] == ""
    assert all(float(row["tokens_per_second"]) > 0 for row in rows[1:])
    for name in COLUMNS[1:-1]:  # the most probable token of one is greedy search
        assert rows[1][name] == rows[2][name]
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [record["method"] for record in records] == [row["method"] for row in rows]
    assert {len(record["texts"]) for record in records} == {24}
    page = Page(out / "report.html")
    assert "nearest to those of human text is" in page.text
    assert "Self-BLEU4 of top_k by k" in page.text
    assert records[3]["texts"][0] in page.text
    printed = capsys.readouterr().out
    assert "human" in printed
    assert str(out / "report.html") in printed


def test_perplexity_is_the_models_own(lm: LanguageModel, pieces: list[HeldOut]):
    human, top_p = lm.compare([TopP(p=0.5)], pieces, max_new_tokens=8, seed=3)
    every = np.concatenate([nats(lm, piece) for piece in pieces])
    assert human.perplexity == pytest.approx(math.exp(every.mean()), rel=1e-4)
    texts = lm.generate([p.prefix for p in pieces], TopP(p=0.5), max_new_tokens=8, seed=3, stop=[lm.end_id])
    logprobs = [value for text in texts for value in text.logprobs]
    assert top_p.perplexity == pytest.approx(math.exp(-np.mean(logprobs)), rel=1e-4)
    assert top_p.texts == [text.full_text for text in texts]
    assert human.texts[0] == lm.tokenizer.decode([*pieces[0].prefix, *pieces[0].continuation])


def test_the_nearest_method_is_the_human_one_itself(lm: LanguageModel, pieces: list[HeldOut]):
    """A method whose measures are the human ones has distance 0, and the one that differs most in all has 1."""
    human, one = lm.compare(["greedy"], pieces, max_new_tokens=8)
    assert human.distance == 0
    assert one.distance == 1
    assert human.mauve == 1
    assert verdict.nearest([human, one]) is one
    for name in verdict.MEASURES:
        low, high = one.intervals[name]
        assert low <= getattr(one, name) <= high or name == "mauve"


def test_texts_without_human_continuations(lm: LanguageModel):
    [one] = lm.compare("greedy", ["once upon a time", "a fox", ""], max_new_tokens=4)
    assert one.method == "greedy"
    assert one.distance is None
    assert math.isnan(one.mauve)
    assert verdict.nearest([one]) is None


def test_prompts_of_token_ids(lm: LanguageModel):
    texts = ["once upon a time", "a fox"]
    ids = lm.tokenizer.encode_batch(texts)
    by_ids = lm.generate([ids[0], texts[1]], max_new_tokens=4)
    assert [one.tokens for one in by_ids] == [one.tokens for one in lm.generate(texts, max_new_tokens=4)]
    with pytest.raises(UserError, match=r"prompts: there is no token 999999"):
        lm.generate([[999_999]])
    with pytest.raises(UserError, match="must be token ids"):
        lm.generate([["a", "b"]])


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1])
def test_every_seed_that_samples_draws_the_pieces(run_dir: Path, lm: LanguageModel, seed: int):
    rows = Rows.load(RunDir(run_dir).rows("valid"))
    sizes = {"prompts": 24, "prompt_tokens": 6, "new_tokens": 8}
    drawn = [
        held_out(rows, "packed", lm.tokenizer.special.start, lm.end_id, seed=one, **sizes) for one in (seed, seed, 0)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("methods", "prompts", "message"),
    [
        (["greedy"], ["one"], "there are 1; give more prompts"),
        ([], ["one", "two"], "compare needs a method"),
        (["greedy", "greedy"], ["one", "two"], "greedy is given twice"),
        (["greedy"], ["one", HeldOut([5], [6])], "give all of one kind"),
    ],
)
def test_mistakes(lm: LanguageModel, methods: list[str], prompts: list, message: str):
    with pytest.raises(UserError, match=message):
        lm.compare(methods, prompts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["greedyy"], "METHOD greedyy is not known"),
        ([], "compare needs a method"),
        (["beam", "top_p:p=2", "--prompts", "100000"], "METHOD top_p:p=2: p 2.0 is outside (0, 1]"),
        (["nofile.py:Mine"], "minigpt: METHOD nofile.py:Mine: there is no nofile.py"),
        (["greedy", "--prompts", "1"], "--prompts 1: must be 2 or more"),
        (["greedy", "--prompt-tokens", "0"], "--prompt-tokens 0: must be 1 or more"),
        (["greedy", "--prompt-tokens", "5000"], "--prompt-tokens 5000: no held-out document is long enough"),
        (["greedy", "--out", __file__], "is a file; name another folder"),
    ],
)
def test_mistakes_on_the_command_line(run_dir: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str):
    assert main(["compare", str(run_dir), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
