"""Run directories: the lock, the description, the comparison with an experiment, and the disk."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from minigpt_jax.config import Experiment, ModelConfig, SampleConfig, TrainConfig
from minigpt_jax.errors import UserError
from minigpt_jax.storage import run_dir
from minigpt_jax.storage.resume import check_same
from minigpt_jax.storage.run_dir import RunDir

FINGERPRINTS = {"corpus": "c", "tokenizer": "t"}


def described(path: Path, experiment: Experiment) -> RunDir:
    path.mkdir()
    files = RunDir(path)
    run_dir.write_description(files, experiment, FINGERPRINTS, {"jax": "0.10"})
    return files


@pytest.mark.parametrize(
    "change",
    [
        {"train": TrainConfig(epochs=9, log_every=1, steps_per_execution=4)},
        {"sample": SampleConfig(prompts=("a",), k=3)},
        {"model": ModelConfig(remat=True)},
    ],
)
def test_resumable_fields_may_change(tmp_path: Path, change: dict):
    files = described(tmp_path / "r", Experiment("x"))
    check_same(files, dataclasses.replace(Experiment("x"), **change), FINGERPRINTS)


def test_all_differences_are_named(tmp_path: Path):
    files = described(tmp_path / "r", Experiment("x"))
    other = Experiment("x", model=ModelConfig(num_layers=4, tied_embeddings=True), seed=1)
    with pytest.raises(UserError) as refused:
        check_same(files, other)
    for difference in ("--model.num-layers is 4 here and 2 there", "--model.tied-embeddings", "--seed is 1 here"):
        assert difference in str(refused.value)


def test_contents_are_compared_and_not_paths(tmp_path: Path):
    files = described(tmp_path / "r", Experiment("x"))
    with pytest.raises(UserError, match="the corpus's contents differ"):
        check_same(files, Experiment("x"), {**FINGERPRINTS, "corpus": "d"})


def test_two_processes_cannot_use_one_folder(tmp_path: Path):
    files = RunDir(tmp_path / "r")
    with run_dir.lock(files), pytest.raises(UserError, match="another process is training"):
        run_dir.lock(files)
    with run_dir.lock(files):
        pass


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(UserError, match="has 1 MB free and about 2 MB are needed"):
        run_dir.check_room(RunDir(tmp_path / "new" / "r"), 2 * 10**6)
    run_dir.check_room(RunDir(tmp_path / "new" / "r"), 5 * 10**5)


def test_only_some_of_the_checkpoints_that_may_be_kept_are_counted():
    assert run_dir.bytes_needed(100, 3) == 1500
    assert run_dir.bytes_needed(100, 10**7) < 10**4


def test_links_of_weights_and_biases_are_left_alone(tmp_path: Path):
    """It links to its logs in the home folder. Links elsewhere, or of its folder itself, may not lead out."""
    files = described(tmp_path / "r", Experiment("r"))
    for folder, allowed in ((files.path / "wandb" / "offline-run-1" / "logs", True), (files.samples, False)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "debug.log").symlink_to(tmp_path / "elsewhere.log")
        if allowed:
            assert files.description()["semantics"] == run_dir.SEMANTICS
        else:
            with pytest.raises(UserError, match="which is not allowed"):
                files.description()
    trial = tmp_path / "sweep" / "trials" / "0" / "wandb"
    shutil.copytree(files.path / "wandb", trial, symlinks=True)
    run_dir.check_contents(tmp_path / "sweep")
    shutil.rmtree(files.samples)
    shutil.rmtree(files.path / "wandb")
    (files.path / "wandb").symlink_to(tmp_path)
    with pytest.raises(UserError, match="which is not allowed"):
        files.description()


def test_a_run_that_was_killed_while_it_was_described_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "mine.py"
    file.write_text("experiment = 1")
    files, whole_file, written = RunDir(tmp_path / "r"), run_dir.whole_file, []

    def fails_after_one(path: Path) -> Any:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return whole_file(path)

    monkeypatch.setattr(run_dir, "whole_file", fails_after_one)
    with run_dir.lock(files), pytest.raises(OSError, match="No space"):
        run_dir.write_description(files, Experiment("r"), FINGERPRINTS, {}, file)
    monkeypatch.setattr(run_dir, "whole_file", whole_file)
    with run_dir.lock(files):
        run_dir.write_description(files, Experiment("r"), FINGERPRINTS, {}, file)
    assert files.experiment_file.read_text() == "experiment = 1"


def test_the_semantics_of_a_run_stay_those_of_its_checkpoints(tmp_path: Path):
    files = described(tmp_path / "r", Experiment("r"))
    old = files.description() | {"semantics": 1}
    for checkpoint, semantics in ((False, run_dir.SEMANTICS), (True, 1)):
        files.config.write_text(json.dumps(old))
        if checkpoint:
            (files.checkpoints / "5").mkdir(parents=True)
        run_dir.write_description(files, Experiment("r"), FINGERPRINTS, {})
        assert files.description()["semantics"] == semantics


def test_a_tokenizer_is_replaced_only_by_another(tmp_path: Path):
    files = described(tmp_path / "r", Experiment("r"))
    kept = None
    for text, is_new in (("a", True), ("a", False), ("b", True)):
        run_dir.write_tokenizer(files, lambda folder, text=text: (folder / "pieces").write_text(text))
        assert (files.tokenizer / "pieces").read_text() == text
        assert (os.stat(files.tokenizer).st_ino != kept) == is_new
        kept = os.stat(files.tokenizer).st_ino
    assert [path.name for path in files.path.iterdir() if path.suffix == ".partial"] == []


def test_a_folder_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written"):
        run_dir.check_room(RunDir(tmp_path / "new" / "r"), 0)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--run-dir /proc/nothing: this folder cannot be made"):
        run_dir.lock(RunDir("/proc/nothing"))


def test_lines_after_a_checkpoint_are_removed(tmp_path: Path):
    files = RunDir(tmp_path)
    lines = [{"step": step, "split": split} for step in (1, 2, 3) for split in ("train", "valid")]
    files.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "sp')
    assert run_dir.read_metrics(files) == lines
    run_dir.drop_records_after(files, 2)
    assert files.metrics.read_text() == "".join(json.dumps(line) + "\n" for line in lines[:4])


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"experiment": {"name": "x", "colour": 1}}'])
def test_a_damaged_description_is_refused_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as refused:
        RunDir(tmp_path).experiment()
    assert "config.json" in str(refused.value)
    assert "\n" not in str(refused.value)
