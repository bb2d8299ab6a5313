"""The command line: what it prints, its exit statuses, and one clear line for each mistake."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny_experiment

from minigpt_jax import samplers
from minigpt_jax.cli import main
from minigpt_jax.trial.run import run

HEAD = "import sys\nsys.path.insert(0, {tests!r})\nfrom tiny_experiment import EXPERIMENT as experiment\n"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    run(tiny_experiment.changed("train", steps=4), path)
    return path


@pytest.fixture
def experiment_file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.py"
    path.write_text(HEAD.format(tests=str(Path(__file__).parent)))
    return path


def command(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # the flag parser's way
        return int(stop.code or 0)


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("spelling", [["--train.log-every", "1"], ["--train.log_every=1"]])
def test_train_and_go_on(experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, spelling: list[str]):
    for steps in (1, 2):
        assert command("train", experiment_file, "--run-dir", tmp_path / "r", "--train.steps", steps, *spelling) == 0
    assert "resuming from step 1" in capsys.readouterr().out
    assert (tmp_path / "r" / "experiment.py").read_bytes() == experiment_file.read_bytes()
    lines = json_lines((tmp_path / "r" / "metrics.jsonl").read_text())
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]


def test_sample_json(run_dir: Path, capsys: pytest.CaptureFixture):
    prompts = ["once upon a time", ""]
    flags = ["--sampler", "top-p", "--p", "0.8", "--max-new-tokens", "6", "--seed", "3", "--json"]
    assert command("sample", run_dir, "--prompt", prompts[0], "--prompt", prompts[1], *flags) == 0
    lines = json_lines(capsys.readouterr().out)
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert set(line) == {"prompt", "text", "full_text", "tokens", "logprobs", "finish_reason"}
        assert len(line["tokens"]) == len(line["logprobs"]) == 6
        assert line["finish_reason"] == "length"


def test_sample_reads_prompts_from_a_file(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "prompts.txt").write_text("the fox\nthe bear\n")
    assert command("sample", run_dir, "--prompt-file", tmp_path / "prompts.txt", "--max-new-tokens", 4, "--json") == 0
    assert [line["prompt"] for line in json_lines(capsys.readouterr().out)] == ["the fox", "the bear"]


def test_only_line_ends_separate_the_prompts_of_a_file(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    prompts = ["a\u2028fox\x0bsaid\x0c.", "", "b\x85c\u2029d\x1ce"]
    (tmp_path / "prompts.txt").write_bytes("\r\n".join(prompts).encode() + b"\n")
    assert command("sample", run_dir, "--prompt-file", tmp_path / "prompts.txt", "--max-new-tokens", 1, "--json") == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.split("\n")[:-1]] == prompts


def test_one_flag_may_have_several_prompts(run_dir: Path, capsys: pytest.CaptureFixture):
    more = ["--max-new-tokens", 1, "--json"]
    assert command("sample", run_dir, "--prompt", "a", "-5 b", "--ban", 9, 8, *more, "--prompt", "c") == 0
    assert [line["prompt"] for line in json_lines(capsys.readouterr().out)] == ["a", "-5 b", "c"]
    assert command("sample", "--prompt", "a", run_dir, *more) == 0
    assert [line["prompt"] for line in json_lines(capsys.readouterr().out)] == ["a"]


def test_a_text_is_quoted_in_the_command_that_trains_on_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "my text.txt").write_text("once")
    assert f"--data.files '{tmp_path}/my text.txt'" in refuse(capsys, tmp_path / "my text.txt")


def test_compare_shows_every_method_and_keeps_it(run_dir: Path, capsys: pytest.CaptureFixture):
    flags = ["--prompt", "the fox", "--max-new-tokens", 12, "--k", 3, "--temperature", 0.5]
    assert command("sample", run_dir, "--compare", *flags, "--json") == 0
    lines = json_lines(capsys.readouterr().out)
    assert [line["sampler"] for line in lines] == list(samplers.METHODS)
    by_name = {line["sampler"]: line for line in lines}
    assert by_name["top_k"]["settings"] == {"k": 3, "temperature": 0.5}
    assert by_name["contrastive"]["settings"]["k"] == 3
    assert by_name["greedy"]["settings"] == {}
    kept = json.loads((run_dir / "samples" / "compare.json").read_text())
    assert (kept["prompt"], kept["step"], kept["rows"]) == ("the fox", 4, lines)
    assert command("sample", run_dir, "--prompt", "the fox", "--max-new-tokens", 12, "--json") == 0
    assert command("sample", run_dir, "--compare", *flags) == 0
    shown = capsys.readouterr().out
    assert all(method in shown for method in samplers.METHODS)


def refuse(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Asserts exit status 2 and one short message on standard error, which is returned."""
    capsys.readouterr()
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    box = "For full helptext" in said  # the flag parser, which knows the nearest flag
    assert box or said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--model.num-layer", "3"], "--model.num-layers"),
        (["--model.norm", "layrnorm"], "layernorm"),
        (["--train.steps", "many"], "--train.steps"),
        (["--model.num-heads", "5", "--model.width", "4"], "--model.num-heads 5"),
        (["--train.batch-size", "12"], "use 8 or 16"),
        (["--data.corpus", "text", "--data.files", "nowhere/*.txt"], "nowhere/*.txt"),
        (["--data.corpus", "simplebooks", "--data.archive", "nowhere.zip"], "nowhere.zip"),
        (["--data.sequence-length", "1000000"], "--data.sequence-length 1000000"),
        (["--tokenizer.vocabulary-size", "50000"], "--tokenizer.vocabulary-size 50000"),
        (["--tokenizer.vocabulary-size", "20"], "--tokenizer.vocabulary-size 20"),
        (["--tokenizer.file", "nowhere.txt"], "--tokenizer.file nowhere.txt"),
    ],
)
def test_flags_that_cannot_be(experiment_file: Path, tmp_path: Path, capsys, flags: list[str], names: str):
    said = refuse(capsys, "train", experiment_file, "--run-dir", tmp_path / "r", *flags)
    assert names in said
    assert not (tmp_path / "r").exists()


BAD_TEXT = {
    "empty.txt": b"",
    "latin1.txt": "caf\xe9 au lait\n".encode("latin1") * 50,
    "short.txt": b"one\ntwo\nthree\nfour\nfive\n",
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_text_that_cannot_be(experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    (tmp_path / name).write_bytes(BAD_TEXT[name])
    flags = ["--data.corpus", "text", "--data.files", tmp_path / name, "--data.held-out", "0.2"]
    size = ["--tokenizer.kind", "bpe", "--tokenizer.vocabulary-size", "270"]
    refuse(capsys, "train", experiment_file, "--run-dir", tmp_path / "r", *flags, *size)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage", ["truncated", "not a zip", "another zip"])
def test_archives_that_cannot_be(experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, damage: str):
    archive = tmp_path / "books.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("holiday/photo.txt", "sand " * 1000)
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:100])
    elif damage == "not a zip":
        archive.write_text("<html>not found</html>")
    flags = ["--data.corpus", "simplebooks", "--data.archive", archive]
    assert "books.zip" in refuse(capsys, "train", experiment_file, "--run-dir", tmp_path / "r", *flags)


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "there is no such"), ("x = 1", "defines no experiment"), ("import nowhere_at_all", "e.py, line 1: Mod")],
)
def test_experiment_files_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture, text: str | None, says: str):
    if text is not None:
        (tmp_path / "e.py").write_text(text)
    assert says in refuse(capsys, tmp_path / "e.py")


def test_a_run_directory_of_another_experiment(run_dir: Path, experiment_file: Path, capsys: pytest.CaptureFixture):
    assert "--model.width" in refuse(capsys, "train", experiment_file, "--run-dir", run_dir, "--model.width", 32)


def test_a_file_where_the_run_directory_should_be(experiment_file: Path, tmp_path: Path, capsys):
    (tmp_path / "r").write_text("")
    assert "is a file" in refuse(capsys, "train", experiment_file, "--run-dir", tmp_path / "r")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["sample", "{run}", "--sampler", "topk"], "did you mean top_k"),
        (["sample", "{run}", "--sampler", "greedy", "--k", "3"], "--k is not a setting of --sampler greedy"),
        (["sample", "{run}", "--sampler", "top_k", "--k", "0"], "--k 0"),
        (["sample", "{run}", "--step", "99"], "no checkpoint of step 99"),
        (["sample", "{run}", "--prompt", "a " * 100], "shorten it"),
        (["sample", "{run}", "--compare", "--sampler", "greedy"], "drop one of the two"),
        (["sample", "{run}", "--compare", "--prompt", "a", "--prompt", "b"], "a single --prompt"),
        (["sample", "{run}", "--compare", "--stop", "x"], "--stop-token"),
        (["sample", "{run}", "--compare", "--k", "0"], "--k 0"),
        (["sample", "{run}", "--prompt", "--what?"], "write --prompt='--what?'"),
        (["sample", "{run}", "--stop", "-x"], "write --stop=-x"),
        (["evaluate", "{run}", "--files", "nowhere.txt"], "--files nowhere.txt"),
        (["compare", "{run}", "greedy", "--out", "{run}/config.json/sub"], "{run}/config.json is a file; name another"),
        (["report", "{run}", "--output", "{run}/config.json/sub"], "{run}/config.json is a file; name another"),
        (["report", "{run}", "--output", "/proc/nothing/sub"], "--output /proc/nothing/sub: it cannot be written"),
        (["export", "{run}", "--to", "{run}/config.json/sub"], "config.json is no folder; name another"),
        (["export", "{run}", "--to", "/proc/nothing/sub"], "--to /proc/nothing: it cannot be written"),
        (["sample", "nowhere"], "nowhere is not a run directory"),
        (["evaluate", "{run}", "--split", "tset"], "test"),
        (["evaluate", "nowhere"], "nowhere is not a run directory"),
        (["samlpe", "{run}"], "did you mean sample"),
    ],
)
def test_commands_that_cannot_be(run_dir: Path, capsys, arguments: list[str], names: str):
    said = refuse(capsys, *(argument.format(run=run_dir) for argument in arguments))
    assert names.format(run=run_dir) in said


@pytest.mark.parametrize(("path", "says"), [("{file}/x", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_path_that_a_program_cannot_open(tmp_path: Path, capsys: pytest.CaptureFixture, path: str, says: str):
    file = tmp_path / "program.py"
    file.write_text("main = lambda arguments: open(arguments[0])")
    assert f"cannot be opened or made: {says}" in refuse(capsys, file, path.format(file=file))


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (["optimizer.learning_rat=1"], "did you mean optimizer.learning_rate?"),
        (["model.num_layers=two"], "two is not a whole number"),
        (["model.num_heads=2,99"], "--model.num-heads 99"),
        (["optimizer.learning_rate=1e-4..1e-2"], "--search random"),
        (["model.width=8", "--search", "bayes"], "tpe"),
        (["model.width=8", "--stack", "0"], "--stack 0"),
        (["model.width=8", "--storage", "postgres:nowhere"], "--storage postgres:nowhere"),
        (["model.width=8", "--name", ".."], "--name ..: must be the name of a folder"),
        (["model.width=8", "--name", "."], "--name .: must be the name of a folder"),
        *(
            (["model.width=8", "--lease", lease], f"--lease {lease}: must be above 0")
            for lease in ("inf", "nan", "0.0")
        ),
        (["model.width=8", "--", "--model.depth", "3"], "--model.depth"),
        (["data.stories=200", "tokenizer.vocabulary_size=300,50000"], "--tokenizer.vocabulary-size 50000"),
        ([], "needs an axis"),
    ],
)
def test_sweeps_that_cannot_be(experiment_file: Path, tmp_path: Path, capsys, monkeypatch, axes: list[str], says: str):
    monkeypatch.chdir(tmp_path)
    assert says.lower() in refuse(capsys, "sweep", experiment_file, *axes).lower()
    assert not (tmp_path / "runs").exists()


def test_a_command_that_is_interrupted_ends_with_130_and_what_it_has_printed():
    program = (
        "import os, signal, time\n"
        "from minigpt_jax import cli\n"
        "def command(arguments):\n"
        "    print('half of it')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "cli._main = command\n"
        "cli.entry()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (130, "half of it\n")


def test_a_run_directory_without_a_checkpoint(tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture):
    import shutil

    copy = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint" in refuse(capsys, "sample", copy)
    config = json.loads((copy / "config.json").read_text())
    config["experiment"]["model"]["width"] = 32
    (copy / "config.json").write_text(json.dumps(config))
    shutil.copytree(run_dir / "checkpoints", copy / "checkpoints")
    assert "does not fit" in refuse(capsys, "sample", copy)


def test_prompts_from_a_file_are_those_of_the_flag(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """With a byte order mark and Windows line ends, as editors write them."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfonce upon\r\na fox\r\n")
    flags = ["--json", "--max-new-tokens", 4]
    assert command("sample", run_dir, "--prompt", "once upon", "--prompt", "a fox", *flags) == 0
    expected = capsys.readouterr().out
    assert command("sample", run_dir, "--prompt-file", file, *flags) == 0
    assert capsys.readouterr().out == expected


def test_a_prompt_file_that_cannot_be_read_is_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "utf16.txt").write_text("once upon a time", "utf-16")
    (tmp_path / "empty.txt").touch()
    mends = {"pipe": "is not a file", "utf16.txt": "iconv -f utf-16", "gone": "name a text file"}
    for name, mend in {**mends, "empty.txt": "is empty; write a prompt"}.items():
        assert command("sample", run_dir, "--prompt-file", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert name in error
        assert mend in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--prompt", "-5 degrees"], ["--prompt", "-- said"], ["--prompt=--what"]])
def test_a_prompt_may_begin_with_a_dash(run_dir: Path, words: list[str], capsys: pytest.CaptureFixture):
    assert command("sample", run_dir, *words, "--max-new-tokens", 1, "--json") == 0
    (line,) = json_lines(capsys.readouterr().out)
    assert line["prompt"] == words[-1].removeprefix("--prompt=")


@pytest.mark.parametrize("flags", [[], ["--compare"]])
def test_what_users_write_is_shown_as_text(run_dir: Path, flags: list[str], capsys: pytest.CaptureFixture):
    prompt = "the fox [/b] \x1b[31msaid"
    assert command("sample", run_dir, "--prompt", prompt, "--max-new-tokens", 3, *flags) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    if flags:  # tokenizers lose what they have no piece for; a title does not
        assert "the fox [/b] \\x1b[31msaid" in out
        assert json.loads((run_dir / "samples" / "compare.json").read_text())["prompt"] == prompt


def test_a_comparison_takes_its_prompt_from_a_file(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "one.txt").write_text("a fox\n")
    assert command("sample", run_dir, "--prompt-file", tmp_path / "one.txt", "--compare", "--max-new-tokens", 3) == 0
    assert "a fox …" in capsys.readouterr().out


def test_the_best_checkpoint_can_be_sampled(run_dir: Path, capsys: pytest.CaptureFixture):
    assert command("sample", run_dir, "--step", "best", "--json", "--max-new-tokens", 3) == 0
    assert len(json_lines(capsys.readouterr().out)) == 1
