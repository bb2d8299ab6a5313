"""`minigpt export`: a run as a folder, from its checkpoint to the lines that are printed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_experiment import EXPERIMENT, changed

import minigpt_jax
from minigpt_jax import cli
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.interchange import huggingface, safetensors_writer
from minigpt_jax.interchange.weights import stored_tensors
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.train import evaluate

FILES = {"config.json", "model.safetensors", "generation_config.json", "README.md", "tokenizer.json"} | {
    "tokenizer_config.json"
}
OWN_CODE = {"configuration_minigpt.py", "modeling_minigpt.py"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "tiny"
    minigpt_jax.run(changed("optimizer", ema_decay=0.5), path)
    return path


def test_folder(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "folder"
    assert cli.main(["export", str(run_dir), "--to", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "MiniGPTForCausalLM: no class of Transformers computes this model" in printed
    assert "--model.norm-position post" in printed
    assert "of 0 validation" not in printed
    assert {path.name for path in target.iterdir()} == FILES | OWN_CODE
    card = (target / "README.md").read_text()
    assert "200 tales that a grammar generates" in card
    assert "| validation |" in card
    assert 'from_pretrained("folder", trust_remote_code=True)' in card
    assert "--model hf --model_args pretrained=folder,trust_remote_code=True" in card
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_weights_are_those_that_are_sampled_from(run_dir: Path, tmp_path: Path) -> None:
    """The moving average, which differs from the weights."""
    minigpt_jax.export(run_dir, tmp_path / "folder")
    weights = minigpt_jax.load(run_dir).weights
    stored = stored_tensors(tmp_path / "folder")
    np.testing.assert_array_equal(
        stored["token_embedding.weight"].read(), np.asarray(weights["token_embedding"]["embedding"])
    )
    back = huggingface.read_weights(tmp_path / "folder", huggingface.read_experiment(tmp_path / "folder"))
    np.testing.assert_array_equal(back["output"]["kernel"], np.asarray(weights["output"]["kernel"]))


def test_perplexity_is_that_of_transformers(run_dir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra huggingface is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    minigpt_jax.export(run_dir, tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", trust_remote_code=True).eval()
    lm, rows = minigpt_jax.load(run_dir), Rows.load(RunDir(run_dir).rows("valid"))
    tokens = torch.tensor(rows.rows.astype(np.int64))
    with torch.no_grad():
        logprobs = theirs(tokens[:, :-1]).logits.log_softmax(-1)
    losses = -logprobs.gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    is_text = np.arange(losses.shape[1])[None] < rows.lengths[:, None] - 1
    sums = evaluate.evaluate(lm.model, lm.weights, rows, 64)
    assert is_text.sum() == sums.tokens
    assert np.exp(losses[is_text].mean()) == pytest.approx(sums.perplexity, rel=1e-4)


def test_way_back(run_dir: Path, tmp_path: Path) -> None:
    """The same ids, and the same texts of the same weights."""
    minigpt_jax.export(run_dir, tmp_path / "folder")
    lm, back = minigpt_jax.load(run_dir), minigpt_jax.load_huggingface(tmp_path / "folder")
    prompts = ["once upon a time, a fox", "", "the end."]
    assert back.tokenizer.encode_batch(prompts) == lm.tokenizer.encode_batch(prompts)
    assert back.tokenizer.special.start == lm.tokenizer.special.start
    ours, theirs = (one.generate(prompts, "random", max_new_tokens=8, seed=3) for one in (lm, back))
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]


def test_step_and_type(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder"
    assert minigpt_jax.export(run_dir, target, step=6).step == 6
    [valid] = [line for line in read_metrics(RunDir(run_dir)) if (line["step"], line["split"]) == (6, "valid")]
    assert f"| validation | {valid['loss']:.4f} | {valid['perplexity']:.4f} |" in (target / "README.md").read_text()
    sizes = {}
    for dtype in ("float32", "bfloat16", "float16"):
        sizes[dtype] = minigpt_jax.export(run_dir, target, dtype=dtype, step="best").size  # replaces the one before
        assert json.loads((target / "config.json").read_text())["dtype"] == dtype
    assert sizes["bfloat16"] == sizes["float16"] == sizes["float32"] / 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: path.write_text("x"), "is no folder"),
        (lambda path: (path / "notes").mkdir(parents=True), "it holds notes and is no earlier export"),
    ],
)
def test_other_folders_are_refused(made: Any, said: str, run_dir: Path, tmp_path: Path) -> None:
    made(tmp_path / "target")
    with pytest.raises(UserError, match=said):
        minigpt_jax.export(run_dir, tmp_path / "target")


def test_export_with_a_file_of_the_users_is_refused(run_dir: Path, tmp_path: Path) -> None:
    minigpt_jax.export(run_dir, tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"it holds notes\.txt, which no export wrote"):
        minigpt_jax.export(run_dir, tmp_path / "folder")
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


def test_failure_leaves_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minigpt_jax.export(run_dir, tmp_path / "folder")
    before = (tmp_path / "folder" / "config.json").read_text()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_writer, "write", fail)
    with pytest.raises(OSError, match="No space"):
        minigpt_jax.export(run_dir, tmp_path / "folder", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "config.json").read_text() == before


def test_earlier_export_comes_back_if_it_cannot_be_replaced(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    minigpt_jax.export(run_dir, target)
    rename, refused = Path.rename, []

    def rename_once_refused(self: Path, to: Path) -> Path:
        if to == target and not refused:
            refused.append(self)
            raise OSError(13, "Permission denied")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", rename_once_refused)
    with pytest.raises(OSError, match="Permission denied"):
        minigpt_jax.export(run_dir, target, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"format": "onnx"}, "--format onnx: must be huggingface"), ({"dtype": "int8"}, "--dtype int8: must be float32")],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        minigpt_jax.export(run_dir, tmp_path / "folder", **arguments)


def test_code_of_the_users_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    description = json.loads((run_dir / "config.json").read_text())
    description["experiment"]["model"]["activation"] = "mish.py:mish"
    (copy / "config.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"--model\.activation mish\.py:mish, code of your own, which no other tool"):
        minigpt_jax.export(copy, tmp_path / "folder")


def test_numbers_that_a_type_cannot_hold(tmp_path: Path) -> None:
    tensors = [("large", (2, 3), lambda: np.full((2, 3), 1e5, np.float32))]
    with pytest.raises(UserError, match=r"--dtype float16: large has values up to 1e\+05"):
        safetensors_writer.write(tmp_path / "half", tensors, "float16", {})
    assert safetensors_writer.write(tmp_path / "brain", tensors, "bfloat16", {}) == 12


def test_transposed_views_are_written_transposed(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors_writer.write(tmp_path / "model.safetensors", [("one", (3, 2), lambda: array.T)], "float32", {})
    np.testing.assert_array_equal(stored_tensors(tmp_path)["one"].read(), array.T)


def test_experiment_of_another_model_fits_a_stock_class(tmp_path: Path) -> None:
    modern = {"norm": "rmsnorm", "norm_position": "pre", "use_bias": False, "activation": "relu2"}
    experiment = changed("train", changed("model", **modern), steps=2)
    minigpt_jax.run(dataclasses.replace(experiment, name="modern"), tmp_path / "run")
    done = minigpt_jax.export(tmp_path / "run", tmp_path / "folder")
    assert done.class_name == "ArceeForCausalLM"
    assert {path.name for path in (tmp_path / "folder").iterdir()} == FILES
    assert "trust_remote_code" not in (tmp_path / "folder" / "README.md").read_text()
    assert EXPERIMENT.model.positions == "rope"
