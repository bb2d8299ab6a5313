"""Every kind of tokenizer on the whole way: sampled, streamed, scored, trained in both layouts, swept and reopened."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sweep
import tokenizer_files
import tyro
from corpus_files import tales
from tiny import full_pass
from tiny_experiment import changed

from minigpt_jax import corpora, generate, model, samplers, sweep, tokenizer
from minigpt_jax.cli import train
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.train import evaluate
from minigpt_jax.trial import environment
from minigpt_jax.trial.run import run

SIZES = {"wordpiece": 300, "unigram": 340, "bpe": 340, "byte_bpe": 300, "char": None, "byte": None}
FORMS = tuple(tokenizer_files.MAKERS)
PROMPTS = ["ka lo", "", "mister ing the", "ka é🙂"]


def tokenizer_of(name: str, folder: Path) -> tokenizer.Tokenizer:
    if name in FORMS:
        return tokenizer.from_huggingface(tokenizer_files.write(folder, name))
    return tokenizer.train(TokenizerConfig(kind=name, vocabulary_size=SIZES[name]), [*tales(), "é🙂中文 ½"])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[*SIZES, *FORMS])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random model, with a few rows more than there are pieces."""
    made = tokenizer_of(request.param, tmp_path_factory.mktemp("tokenizer"))
    experiment = Experiment(
        "random",
        data=DataConfig(layout="packed", sequence_length=48),
        tokenizer=TokenizerConfig(vocabulary_size=512),
        model=ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=16, positions="rope"),
    )
    params = jax.jit(model.build(experiment).init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return LanguageModel(experiment, made, jax.tree.map(lambda x: 2.0 * x, params))


def test_rows_are_independent_and_draw_no_special_token(lm: LanguageModel) -> None:
    drawn = samplers.Random(temperature=2.0)
    together = lm.generate(PROMPTS, drawn, 24, seed=3)
    for row, (prompt, whole) in enumerate(zip(PROMPTS, together, strict=True)):
        [alone] = lm.generate([prompt], drawn, 24, seed=3, row_ids=[row])
        assert (alone.tokens, alone.text) == (whole.tokens, whole.text)
        assert not set(whole.tokens) & set(lm.tokenizer.special.banned)
        assert max(whole.tokens) < len(lm.tokenizer)


def test_the_end_of_a_text_may_be_asked_for(lm: LanguageModel) -> None:
    end = lm.end_ids[-1]
    assert lm.end_ids == lm.tokenizer.special.ends("packed")
    for one in lm.generate(PROMPTS, samplers.Greedy(), 5, stop=lm.end_ids, logit_bias={end: 1e4}):
        assert (one.tokens, one.text, one.finish_reason) == ([end], "", "stop")


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_the_text(lm: LanguageModel, seed: int) -> None:
    for full in (False, True):
        [whole] = lm.generate(["ka lo"], "random", 40, seed=seed)
        parts = list(lm.stream("ka lo", "random", 40, seed=seed, full=full))
        assert "".join(parts) == (whole.full_text if full else whole.text)


def test_a_stream_has_whole_characters(lm: LanguageModel) -> None:
    """The text of a model that writes wide characters, a few bytes at a time if its pieces are bytes."""
    text = "ka 🙂🙂 é中文½ lo 🙂 mister🙂"
    [ids] = lm.tokenizer.encode_batch([text])
    target = jnp.asarray(ids)

    def written(logits: Any, tokens: Any, length: Any, step: Any) -> Any:
        return 1e4 * jax.nn.one_hot(target[jnp.minimum(step, len(ids) - 1)], logits.shape[1])

    parts = list(lm.stream("", "greedy", len(ids), processors=[written]))
    assert "".join(parts) == lm.tokenizer.decode(ids)
    assert len(parts) > 1
    assert not any("\ufffd" in part for part in parts)


def test_scores_are_of_the_text_without_padding(lm: LanguageModel) -> None:
    together = lm.score(PROMPTS)
    for prompt, score in zip(PROMPTS, together, strict=True):
        ids = [lm.tokenizer.special.start, *lm.tokenizer.encode_batch([prompt])[0]]
        row = jnp.asarray([ids + [0] * (lm.model.sequence_length - len(ids))])
        logprobs = np.asarray(jax.nn.log_softmax(full_pass(lm.model, lm.weights, row)[0]))
        expected = sum(logprobs[i, token] for i, token in enumerate(ids[1:]))
        assert score == pytest.approx(expected, abs=1e-3)


def tiny(layout: Any, **settings: Any) -> Experiment:
    experiment = changed("data", tiny_sweep.EXPERIMENT, layout=layout, min_bytes=100)
    return replace(experiment, tokenizer=TokenizerConfig(**settings), train=replace(experiment.train, steps=4))


@pytest.mark.parametrize(
    ("name", "layout"),
    [("byte_bpe", "packed"), ("char", "lines"), ("byte", "packed"), ("gpt2", "packed"), ("bert", "lines")],
)
def test_a_run_is_reopened_with_its_tokenizer(name: str, layout: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"kind": name, "vocabulary_size": SIZES.get(name)}
    if name in FORMS:
        settings = {"file": tokenizer_files.write(tmp_path / "given", name)}
    experiment, files = tiny(layout, **settings), RunDir(tmp_path / "run")
    result = run(experiment, files.path, batches=tiny_sweep.batches)
    recorded, lm = files.experiment(), generate.load(files.path)
    assert recorded.tokenizer.vocabulary_size == len(lm.tokenizer) == lm.model.vocabulary_size
    assert recorded.tokenizer.kind == ("huggingface" if name in FORMS else name)
    assert recorded.tokenizer.start_id == lm.tokenizer.special.start
    valid = Rows.load(files.rows("valid"))
    sums = evaluate.evaluate(lm.model, lm.weights, valid, 16)
    assert result.valid is not None
    assert sums.loss == pytest.approx(result.valid.loss, rel=1e-5)
    assert sums.tokens == int(valid.lengths.sum()) - len(valid)
    assert [one.finish_reason for one in lm.generate(["", "once upon"], "random", 4)] == ["length"] * 2
    again = run(experiment, files.path, batches=tiny_sweep.batches)  # the flags leave out what follows the tokenizer
    assert again.progress.step == 4


@pytest.mark.parametrize("name", ["byte_bpe", "char", "byte", "gpt2"])
def test_bits_per_byte_are_of_all_the_text(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"kind": name, "vocabulary_size": SIZES.get(name)}
    if name in FORMS:
        settings = {"file": tokenizer_files.write(tmp_path, name)}
    sizes = [
        {part: int(rows.bytes.sum()) for part, rows in environment.prepare(experiment).prepared.splits.items()}
        for experiment in (tiny("packed", **settings), tiny("packed", kind="bpe", vocabulary_size=340))
    ]
    assert sizes[0] == sizes[1]


def test_unknown_characters_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line has a character of its own, so each held-out one has a character that the training part lacks."""
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{text}{chr(0x4E00 + i)}\n" for i, text in enumerate(tales(lines=300))))
    experiment = changed("data", tiny("packed", kind="char"), corpus="text", files=(str(book),), held_out=0.2)
    corpus = corpora.open_corpus(experiment.data, tmp_path)
    valid, test = (len(list(corpus.documents(split))) for split in ("valid", "test"))
    run(experiment, tmp_path / "run", batches=tiny_sweep.batches)
    line = f"tokens that stand for text without a piece: {valid} of the validation part and {test} of the test part"
    assert line in capsys.readouterr().out
    assert min(valid, test) > 0


def test_a_sweep_over_kinds(tmp_path: Path) -> None:
    plan = tiny_sweep.plan(
        tmp_path, "tokenizer.kind=byte_bpe,char,byte,wordpiece", experiment=tiny("packed", vocabulary_size=300)
    )
    outcome = sweep.sweep(plan, source=tiny_sweep.batches)
    assert [row["status"] for row in outcome.rows] == ["complete"] * 4
    assert all(0 < row["bits_per_byte"] < 20 for row in outcome.rows)


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ((), 300),
        (("--tokenizer.kind", "char"), None),
        (("--tokenizer.kind=byte",), None),
        (("--tokenizer.kind", "byte_bpe"), 300),
        (("--tokenizer.file", "some/tokenizer.json"), None),
        (("--tokenizer.file", "pieces.txt"), 300),
        (("--tokenizer.kind", "char", "--tokenizer.vocabulary-size", "90"), 90),
    ],
)
def test_a_flag_that_names_another_tokenizer_brings_its_size(flags: tuple[str, ...], size: int | None) -> None:
    """The size in an experiment's file is that of the tokenizer in the file."""
    default = train.Arguments(tiny("packed", vocabulary_size=300))
    chosen = tyro.cli(train.Arguments, args=flags, default=default).experiment
    assert train.with_own_size(chosen, flags).tokenizer.vocabulary_size == size


def test_a_resumed_run_may_not_change_the_vocabulary(tmp_path: Path) -> None:
    run(tiny("packed", kind="byte"), tmp_path / "run", batches=tiny_sweep.batches)
    with pytest.raises(UserError, match=r"--tokenizer.vocabulary-size is 300 here and 259 there"):
        run(tiny("packed", kind="byte", vocabulary_size=300), tmp_path / "run", batches=tiny_sweep.batches)


WRONG: dict[str, dict[str, Any]] = {
    "--tokenizer.kind huggingface: needs --tokenizer.file": {"kind": "huggingface"},
    "--tokenizer.vocabulary-size 200: the tokenizer has 259": {"kind": "byte", "vocabulary_size": 200},
    "--tokenizer.start-id 7: texts of this tokenizer start with 2": {"kind": "byte", "start_id": 7},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_made(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error, contextlib.chdir(tmp_path):
        run(tiny("packed", **WRONG[message]), batches=tiny_sweep.batches)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())
