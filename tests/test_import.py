"""A Hugging Face folder as a language model, as a run directory, and as what training starts from."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra huggingface is not installed")
pytest.importorskip("transformers", reason="the extra huggingface is not installed")

import tokenizers
import torch
import transformers
from tiny_experiment import EXPERIMENT, changed

import minigpt_jax
from minigpt_jax import config, generate
from minigpt_jax.cli import main
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.interchange import importing
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.trial.run import run

END = "<|endoftext|>"
TEXTS = ["the fox ran, and the bear slept.", "a small owl", "Ünïcode: 3 < 4!"]
WINDOW, ROWS_MORE = 48, 7
HEAD = "import sys\nsys.path.insert(0, {tests!r})\nfrom tiny_experiment import EXPERIMENT as experiment\n"


def write_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Byte-level pieces, with a token that begins and ends texts."""
    pieces = tokenizers.ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXTS * 5, vocab_size=290, special_tokens=[END], show_progress=False)
    pieces.save(str(folder / "tokenizer.json"))
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embedding has more rows than the tokenizer has pieces."""
    path = tmp_path_factory.mktemp("huggingface") / "tiny llama"
    path.mkdir()
    pieces = write_tokenizer(path)
    end = pieces.token_to_id(END)
    settings = transformers.LlamaConfig(
        vocab_size=pieces.get_vocab_size() + ROWS_MORE,
        max_position_embeddings=WINDOW,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.3,
    )
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(settings).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def imported(folder: Path) -> Path:
    path = folder.parent / "runs" / "imported"
    assert command("import", folder, "--to", path) == 0
    return path


def command(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def theirs(folder: Path) -> tuple[Any, tokenizers.Tokenizer, int]:
    pieces = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = pieces.token_to_id(END)
    assert end is not None
    return transformers.LlamaForCausalLM.from_pretrained(folder).eval(), pieces, end


def test_greedy_texts_are_those_of_transformers(folder: Path) -> None:
    lm = minigpt_jax.load_huggingface(folder)
    model, pieces, end = theirs(folder)
    for text, ours in zip(TEXTS, lm.generate(TEXTS, max_new_tokens=12), strict=True):
        ids = [end, *pieces.encode(text).ids]
        made = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=end,
            suppress_tokens=[end, *range(pieces.get_vocab_size(), model.config.vocab_size)],
        )
        expected = made[0, len(ids) :].tolist()
        assert ours.tokens == expected
        assert ours.full_text == pieces.decode(ids[1:] + expected)


def test_scores_are_those_of_transformers(folder: Path) -> None:
    lm = minigpt_jax.load_huggingface(folder)
    model, pieces, end = theirs(folder)
    for text, score in zip(TEXTS, lm.score(TEXTS), strict=True):
        ids = torch.tensor([[end, *pieces.encode(text).ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        assert score == pytest.approx(logprobs.gather(-1, ids[0, 1:, None]).sum().item(), abs=1e-3)


def test_an_imported_run_samples_as_the_folder_does(folder: Path, imported: Path, capsys: Any) -> None:
    capsys.readouterr()
    flags = ["--prompt", TEXTS[0], "--sampler", "greedy", "--max-new-tokens", 8, "--json"]
    assert command("sample", imported, *flags) == 0
    line = json.loads(capsys.readouterr().out)
    [expected] = minigpt_jax.load_huggingface(folder).generate(TEXTS[:1], max_new_tokens=8)
    assert (line["tokens"], line["full_text"]) == (expected.tokens, expected.full_text)
    description = RunDir(imported).description()
    assert description["imported"] == {"path": str(folder), "model_type": "llama"}
    assert sorted(path.name for path in imported.parent.iterdir()) == ["imported"]


def test_an_imported_run_is_evaluated_on_files(imported: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert command("evaluate", imported) == 2
    error = capsys.readouterr().err
    assert "--files" in error
    assert len(error.splitlines()) == 1
    (tmp_path / "text.txt").write_text(TEXTS[0])
    assert command("evaluate", imported, "--files", tmp_path / "text.txt", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    lm = generate.load(imported)
    ids = lm.tokenizer.encode_batch([TEXTS[0]])[0]
    assert figures["tokens"] == len(ids) + 1  # the end of the document too
    assert figures["bits_per_byte"] == pytest.approx(
        figures["loss"] * figures["tokens"] / np.log(2) / len(TEXTS[0]), rel=1e-6
    )


def test_ways_of_sampling_are_compared_on_files(imported: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("mauve", reason="the extra mauve is not installed")
    flags = ["--prompts", 4, "--prompt-tokens", 4, "--max-new-tokens", 4, "--out", tmp_path / "out"]
    capsys.readouterr()
    assert command("compare", imported, "greedy", *flags) == 2
    assert "--files" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text(" ".join(TEXTS * 40))
    assert command("compare", imported, "greedy", *flags, "--files", tmp_path / "text.txt") == 0
    assert f"from {tmp_path / 'text.txt'}" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("source", ["folder", "imported"])
def test_training_starts_from_the_folder_and_from_the_imported_run(
    folder: Path, imported: Path, tmp_path: Path, source: str
) -> None:
    """At a learning rate of 0 the weights stay."""
    file = tmp_path / "experiment.py"
    file.write_text(HEAD.format(tests=str(Path(__file__).parent)))
    start = {"folder": folder, "imported": imported}[source]
    flags = ["--train.steps", 1, "--optimizer.learning-rate", 0, "--data.sequence-length", 32]
    assert command(file, "--init-from", start, "--run-dir", tmp_path / "run", *flags) == 0
    lm, first = generate.load(tmp_path / "run"), minigpt_jax.load_huggingface(folder)
    for kept, leaf in zip(jax.tree.leaves(lm.weights), jax.tree.leaves(first.weights), strict=True):
        np.testing.assert_array_equal(kept, leaf)
    assert lm.experiment.model == first.experiment.model
    assert (lm.experiment.data.sequence_length, lm.experiment.data.corpus) == (32, "stories")
    assert lm.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert RunDir(tmp_path / "run").description()["init_from"]["path"] == str(start)


def test_training_in_python(folder: Path, tmp_path: Path) -> None:
    lm = minigpt_jax.load_huggingface(folder)
    before = jax.tree.map(np.asarray, lm.weights)
    experiment: Experiment = config.inherited(changed("train", EXPERIMENT, steps=2), lm.experiment)
    result = minigpt_jax.run(experiment, tmp_path / "run", init_from=lm)
    assert result.progress.step == 2
    jax.tree.map(np.testing.assert_array_equal, lm.weights, before)  # training took a copy
    assert run(experiment, tmp_path / "run", init_from=lm).progress.step == 2


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def no_special_tokens(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "bos_token_id": None, "eos_token_id": None}))
    (folder / "generation_config.json").unlink()
    description = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(description.replace(END, "plain"))


BAD = {
    "tokenizer.json cannot be read": without("tokenizer.json"),
    "config.json cannot be read": without("config.json"),
    "has no model.safetensors": without("model.safetensors"),
    "bos_token_id": no_special_tokens,
    "cannot be used by tokenizers": lambda folder: (folder / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0}}}'
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_folder_leaves_nothing_half_made(folder: Path, tmp_path: Path, capsys: Any, words: str) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    BAD[words](bad)
    (tmp_path / "runs").mkdir()
    assert command("import", bad, "--to", tmp_path / "runs" / "new") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(UserError):
        minigpt_jax.load_huggingface(bad)


@pytest.mark.parametrize(
    ("part", "error"),
    [("write_tokenizer", OSError(13, "Permission denied", "x")), ("check_room", UserError("--run-dir x: full"))],
)
def test_a_failure_leaves_nothing_half_made(
    part: str, error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(importing, part, fail)
    assert command("import", folder, "--to", tmp_path / "runs" / "new") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_a_run_directory_is_not_overwritten(folder: Path, imported: Path, capsys: Any) -> None:
    assert command("import", folder, "--to", imported) == 2
    assert f"--to {imported}" in capsys.readouterr().err


def test_added_tokens_without_a_row_are_left_out(folder: Path, tmp_path: Path) -> None:
    """As in folders whose tokenizer was given tokens while the embedding was not."""
    path = shutil.copytree(folder, tmp_path / "more")
    pieces = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    first = pieces.get_vocab_size()
    pieces.add_tokens([f"<{i}>" for i in range(ROWS_MORE + 1)])
    pieces.add_special_tokens(["<mask>"])
    pieces.save(str(path / "tokenizer.json"))
    lm, original = (minigpt_jax.load_huggingface(one) for one in (path, folder))
    assert len(lm.tokenizer) == lm.model.vocabulary_size == first + ROWS_MORE
    assert lm.tokenizer.encode_batch([f"<{ROWS_MORE - 1}>"]) == [[first + ROWS_MORE - 1]]
    text = f"the <{ROWS_MORE}> fox<mask>"
    assert lm.tokenizer.encode_batch([text]) == original.tokenizer.encode_batch([text])
    assert command("import", path, "--to", tmp_path / "run") == 0
    assert generate.load(tmp_path / "run").tokenizer.fingerprint == lm.tokenizer.fingerprint


def test_the_window_of_a_folder_is_that_of_its_positions(folder: Path) -> None:
    lm = minigpt_jax.load_huggingface(folder)
    assert lm.model.sequence_length == WINDOW
    assert dataclasses.asdict(lm.experiment.model)["num_kv_heads"] == 2
