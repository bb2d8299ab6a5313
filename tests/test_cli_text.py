"""Training on texts of the user's own from the command line: what the README shows, and mistakes."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from test_cli import command, refuse

TEXT = Path(__file__).parents[1] / "experiments" / "text.py"
STORIES = [f"Once there was a king {i}.\n\nHe had {i + 1} horses\nand no crown." for i in range(300)]
END = "<|endoftext|>"


def test_stories_between_separators(tmp_path: Path, capsys: pytest.CaptureFixture):
    """As the README has it, with few steps."""
    (tmp_path / "TinyStories.txt").write_text(f"\n{END}\n".join(STORIES))
    (tmp_path / "more.txt.zst").write_bytes(zstd.compress(END.join(STORIES[:20]).encode()))
    small = ["--model.num-layers", 1, "--model.width", 32, "--train.steps", 2]
    words = ["--data.files", tmp_path / "TinyStories.txt", "--data.separator", END, "--run-dir", tmp_path / "run"]
    assert command(TEXT, *words, *small) == 0
    line = r"^([\d,]+) bytes of text to train on · ([\d,]+) held .* ([\d,]+) for testing"
    told = re.search(line, capsys.readouterr().out, re.MULTILINE)
    assert told
    assert sum(int(size.replace(",", "")) for size in told.groups()) == sum(map(len, STORIES))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["experiment"]["data"]["separator"] == END
    # The run remembers where documents end: the separator is not part of what is evaluated.
    assert command("evaluate", tmp_path / "run", "--files", tmp_path / "more.txt.zst", "--json") == 0
    separated = json.loads(capsys.readouterr().out)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES[:20]))
    assert command("evaluate", tmp_path / "run", "--files", tmp_path / "more.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["loss"] == separated["loss"]


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("a.zst", [], "a.zst cannot be read"),
        ("b.parquet", [], "no column 'text', only body"),
        ("b.parquet", ["--data.json-field", "tale"], "no column 'tale'"),
        ("c.txt", ["--data.separator", r"\n\n\n"], r"--data.separator '\n\n\n' never occurs"),
        ("c.txt", ["--data.separator", ""], "--data.separator '': must not be empty"),
        ("c.txt", ["--data.separator", "x", "--data.document", "file"], "drop one of the two"),
    ],
)
def test_texts_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, flags: list[str], words: str):
    (tmp_path / "a.zst").write_bytes(zstd.compress("\n".join(STORIES).encode())[:-5])
    pq.write_table(pa.table({"body": STORIES}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("\n".join(STORIES))
    said = refuse(capsys, TEXT, "--data.files", tmp_path / name, "--run-dir", tmp_path / "r", *flags)
    assert words in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_credentials_in_an_address_are_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    flags = ["--data.files", "https://ann:hunter2@host/a.txt"]
    said = refuse(capsys, name, TEXT, *(["seed=0,1", "--"] if name == "sweep" else []), *flags)
    assert "--data.files https://…" in said
    assert "hunter2" not in said
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_credentials_on_an_axis_of_a_sweep_are_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = refuse(capsys, "sweep", TEXT, "data.files=a.txt,https://ann:hunter2@host/a.txt")
    assert "hunter2" not in said
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture):
    """As the README has it, with few steps; the text gives fewer pieces than the experiment asks for."""
    text = tmp_path / "book.txt"
    text.write_text("".join(f"The {i}th of the old kings was as dead as the {i + 1}th .\r\n" for i in range(400)))
    small = ["--model.num-layers", 1, "--model.width", 32, "--train.steps", 4]
    assert command(TEXT, "--data.files", text, "--run-dir", tmp_path / "run", "--train.evaluate-every", 2, *small) == 0
    line = r"^([\d,]+) bytes of text to train on · ([\d,]+) held .* ([\d,]+) for testing"
    told = re.search(line, capsys.readouterr().out, re.MULTILINE)
    assert told
    ends = 2 * 400  # two bytes a line
    assert sum(int(size.replace(",", "")) for size in told.groups()) == text.stat().st_size - ends
    assert command("sample", tmp_path / "run", "--step", "best", "--prompt", "The 7th", "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("The 7th")
