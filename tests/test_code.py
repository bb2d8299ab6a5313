"""The user's code, named FILE.py:Name: how it is loaded, copied to run directories, and trusted."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax import config, corpora, generate, sweep
from minigpt_jax.cli import main
from minigpt_jax.config import Code, DataConfig, Experiment, ModelConfig, OptimizerConfig, code
from minigpt_jax.errors import UserError
from minigpt_jax.model import parameter_shapes
from minigpt_jax.storage.run_code import code_by_run, trusted_experiment
from minigpt_jax.storage.run_dir import RunDir, write_description
from minigpt_jax.sweep import axes
from minigpt_jax.sweep.study import Study
from minigpt_jax.train import optim
from minigpt_jax.trial.run import run

MINE = """\
import jax.numpy as jnp
import optax
from minigpt_jax.model.blocks import Block

def bend(x):
    return jnp.square(jnp.tanh(x))

class Same(Block):
    pass

def sgd(learning_rate, hyper):
    return optax.sgd(learning_rate, momentum=hyper.b1)

class Numbers:
    def __init__(self, data):
        self.count = data.stories
    def documents(self, split):
        for i in range(self.count):
            yield f"{split} of the {i} foxes and {i + 1} bears ."

class Lines:
    def __init__(self, run_dir, experiment, step):
        self.file = (run_dir / "lines.txt").open("a")
    def log(self, step, split, figures):
        print(step, split, sorted(figures)[0], file=self.file, flush=True)
    def sync(self):
        pass
    def close(self):
        self.file.close()

LIMIT = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def loaded(path: Path, name: str, field: str = "model.activation") -> Code:
    value = code.load_value(field, f"{path.name}:{name}", [path.parent])
    assert isinstance(value, Code)
    return value


def everywhere(file: str | Path) -> Experiment:
    """An experiment that names code in every field that allows it."""
    experiment = changed("data", corpus=f"{file}:Numbers", stories=60)
    experiment = changed("model", experiment, activation=f"{file}:bend", block=f"{file}:Same")
    experiment = changed("optimizer", experiment, name=f"{file}:sgd")
    experiment = changed("tokenizer", experiment, vocabulary_size=100)
    return changed("train", experiment, steps=4, evaluate_every=4, trackers=(f"{file}:Lines",))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "mine.py").write_text(MINE)
    run(everywhere(folder / "mine.py"), folder / "run")
    return folder / "run"


REFUSED = {
    "a missing file": ("other.py:bend", "there is no other.py in"),
    "a missing name": ("mine.py:bent", "did you mean bend?"),
    "a name far from all": ("mine.py:XYZ", "it defines bend, Same, sgd, Numbers, Lines"),
    "what cannot be called": ("mine.py:LIMIT", "defines no function or class LIMIT"),
    "a file that fails": ("broken.py:f", "broken.py, line 2: ZeroDivisionError: division by zero; fix the file"),
    "a file that is no Python": ("syntax.py:f", "syntax.py, line 1: SyntaxError: invalid syntax; fix the file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_name_of_code_is_refused_in_one_line(case: str, mine: Path):
    (mine.parent / "broken.py").write_text("x = 0\n1 / x\n")
    (mine.parent / "syntax.py").write_text("def f(:\n")
    name, reason = REFUSED[case]
    with pytest.raises(UserError) as refused:
        code.load(changed("model", activation=name), [mine.parent])
    assert str(refused.value).startswith(f"--model.activation {name}: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mistyped_choice_suggests_the_nearest_and_the_form_of_code():
    with pytest.raises(UserError, match=r"muon, normuon, lion or FILE\.py:Name; did you mean lion\?"):
        config.validate(Experiment("x", optimizer=OptimizerConfig(name="lionn")))
    with pytest.raises(UserError, match=r"--train\.trackers"):
        config.validate(changed("train", trackers=("tensorbord",)))


def test_the_first_folder_that_has_the_file_is_used(mine: Path, tmp_path: Path):
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "mine.py").write_text("def bend(x): return x\n")
    first = code.load_value("model.activation", "mine.py:bend", [tmp_path / "none", mine.parent, tmp_path / "second"])
    assert isinstance(first, Code)
    assert first.path == mine


def test_a_file_runs_once_and_its_versions_differ(mine: Path):
    mine.write_text(MINE + "import pathlib\npathlib.Path(__file__).with_suffix('.log').open('a').write('x')\n")
    first, again = loaded(mine, "bend"), loaded(mine, "bend")
    loaded(mine, "sgd")
    assert first == again == "mine.py:bend"
    assert first.value is again.value
    assert mine.with_suffix(".log").read_text() == "x"
    mine.write_text(MINE.replace("square", "abs"))
    changed_file = loaded(mine, "bend")
    assert changed_file == "mine.py:bend"
    assert changed_file != first
    assert ModelConfig(activation=changed_file) != ModelConfig(activation=first)
    assert {ModelConfig(activation=first): 1}.get(ModelConfig(activation=changed_file)) is None


def test_two_files_of_one_name_are_refused(mine: Path, tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.py").write_text(MINE + "# another\n")
    experiment = changed("optimizer", changed("model", activation="mine.py:bend"), name="b/mine.py:sgd")
    with pytest.raises(UserError, match=r"another file of that name.*rename one"):
        code.load(experiment, [tmp_path])


def test_code_is_written_to_json_as_its_name(mine: Path):
    experiment = code.load(everywhere("mine.py"), [mine.parent])
    assert json.loads(config.dumps(config.to_json(experiment))) == json.loads(
        config.dumps(config.to_json(everywhere("mine.py")))
    )
    assert config.from_json(config.to_json(experiment)) == experiment


def test_an_activation_must_keep_the_shape(mine: Path):
    mine.write_text("def bend(x): return x.sum()\n")
    with pytest.raises(UserError, match=r"--model\.activation mine\.py:bend: .*must keep the shape"):
        parameter_shapes(changed("model", activation=loaded(mine, "bend")))


def test_code_that_was_not_loaded_is_not_run():
    with pytest.raises(UserError, match="trust-code"):
        parameter_shapes(changed("model", activation="mine.py:bend"))


def test_an_optimizer_gets_the_learning_rate_of_each_step(mine: Path):
    """The optimizer is traced once for all steps and rates."""
    settings = OptimizerConfig(name=loaded(mine, "sgd", "optimizer.name"), schedule="linear", b1=0.5)
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.01)}
    traces = []

    @jax.jit
    def update(state, step, hyper):
        traces.append(step)
        return optim.transformation(settings, hyper, step).update(gradient, state, params)

    hyper = optim.hyperparameters(settings, 10)
    state, velocity = optim.transformation(settings, hyper, 0).init(params), 0.0
    for step in range(3):
        velocity = 0.5 * velocity + 0.01
        for rate in (1e-3, 1e-2):
            updates, _ = update(state, step, hyper._replace(learning_rate=np.float32(rate)))
            np.testing.assert_allclose(updates["w"], np.full(3, -rate * (1 - step / 10) * velocity), rtol=1e-5)
        _, state = update(state, step, hyper)
    assert len(traces) == 1


def test_an_optimizer_must_return_a_transformation(mine: Path):
    mine.write_text("def sgd(learning_rate, hyper): return learning_rate\n")
    settings = OptimizerConfig(name=loaded(mine, "sgd", "optimizer.name"))
    with pytest.raises(UserError, match=r"--optimizer\.name mine\.py:sgd: .*Optax"):
        optim.transformation(settings, optim.hyperparameters(settings, 10), 0)


def test_a_corpus_is_identified_by_its_documents_and_its_file(mine: Path, tmp_path: Path):
    def opened(count: int) -> corpora.Corpus:
        return corpora.open_corpus(DataConfig(corpus=loaded(mine, "Numbers", "data.corpus"), stories=count), tmp_path)

    first = opened(60)
    assert next(first.documents("valid")) == "valid of the 0 foxes and 1 bears ."
    assert first.floor("valid") is None
    assert opened(60).fingerprint == first.fingerprint
    assert opened(61).fingerprint != first.fingerprint
    mine.write_text(MINE + "# another\n")
    assert opened(60).fingerprint != first.fingerprint
    own = "    def fingerprint(self): return str(self.count)\n"
    mine.write_text(MINE.replace("    def documents", own + "    def documents"))
    assert opened(60).fingerprint == opened(60).fingerprint != opened(61).fingerprint


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Numbers:\n  def __init__(self, data): pass\n", "which has no method documents"),
        (MINE.replace('yield f"', 'yield i, f"'), "a document of the train split is a tuple"),
        (MINE.replace('yield f"', r'yield f"\ud800'), "a document of the train split has half of a surrogate pair"),
    ],
)
def test_an_invalid_corpus_is_refused_in_one_line(mine: Path, tmp_path: Path, source: str, reason: str):
    mine.write_text(source)
    with pytest.raises(UserError, match=rf"--data\.corpus mine\.py:Numbers: .*{reason}"):
        corpora.open_corpus(DataConfig(corpus=loaded(mine, "Numbers", "data.corpus")), tmp_path)


def test_a_run_directory_has_a_copy_and_the_hash_of_each_file(run_dir: Path):
    copy = run_dir / "code" / "mine.py"
    assert copy.read_text() == MINE
    recorded = json.loads((run_dir / "config.json").read_text())
    assert recorded["code"] == {"mine.py": loaded(copy, "bend").sha256}
    assert recorded["experiment"]["model"]["activation"].endswith("mine.py:bend")
    assert "4 valid" in (run_dir / "lines.txt").read_text()


def test_a_run_resumes_only_with_the_same_code_from_any_folder(run_dir: Path, tmp_path: Path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    longer = changed("train", everywhere(copy / "code" / "mine.py"), steps=5)
    assert run(longer, copy).progress.step == 5
    (tmp_path / "mine.py").write_text(MINE + "# another\n")
    with pytest.raises(UserError, match=r"mine\.py differs from the copy"):
        run(changed("train", everywhere(tmp_path / "mine.py"), steps=6), copy)


def test_the_code_of_a_run_directory_runs_only_if_it_is_trusted(run_dir: Path, tmp_path: Path, capsys):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    sample = ["sample", str(copy), "--prompt", "the 3", "--max-new-tokens", "3", "--json"]
    for command in (sample, ["evaluate", str(copy), "--json"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "--trust-code" in error
        assert "--code mine.py" in error
        assert error.count("\n") == 1
    texts = []
    shutil.copy(copy / "code" / "mine.py", tmp_path / "other.py")
    (tmp_path / "mine.py").write_text(MINE)
    for flags in (["--trust-code"], ["--code", tmp_path / "mine.py"], ["--code", tmp_path / "other.py"]):
        assert main([*sample, *map(str, flags)]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert main(["evaluate", str(copy), "--trust-code"]) == 0
    (copy / "code" / "mine.py").write_text(MINE + "# changed on the way\n")
    with pytest.raises(UserError, match="differs from the file that the run was trained with"):
        generate.load(copy, trust_code=True)
    with pytest.raises(UserError, match=r"--code .*nowhere\.py|nowhere\.py cannot be read"):
        generate.load(copy, code=[tmp_path / "nowhere.py"])


def test_code_that_the_model_does_not_need_is_not_required(run_dir: Path, tmp_path: Path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    description = json.loads((copy / "config.json").read_text())
    description["experiment"]["model"] |= {"activation": "relu", "block": "transformer"}
    (copy / "config.json").write_text(json.dumps(description))
    assert trusted_experiment(RunDir(copy)).optimizer.name.endswith("mine.py:sgd")
    with pytest.raises(UserError, match=r"--code .*mine\.py: .*does not use this file; it uses no file"):
        trusted_experiment(RunDir(copy), code_files=["mine.py"])


def test_an_error_in_the_users_code_is_one_line(mine: Path, tmp_path: Path, capsys, monkeypatch):
    mine.write_text(MINE.replace("jnp.square(jnp.tanh(x))", "x.nothing_like_it"))
    head = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    experiment = (
        head
        + "from tiny_experiment import EXPERIMENT, changed\nexperiment = changed('model', activation='mine.py:bend')\n"
    )
    (tmp_path / "experiment.py").write_text(experiment)
    monkeypatch.chdir(tmp_path.parent)  # the code is found in the folder of the experiment's file
    assert main([str(tmp_path / "experiment.py"), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"{mine}, line 6: AttributeError" in error
    assert error.count("\n") == 1


def test_a_sweep_varies_code_and_compares_its_contents(mine: Path, tmp_path: Path):
    def plan() -> sweep.Plan:
        varied = axes.parse(["model.activation=relu,mine.py:bend"])
        return sweep.make(EXPERIMENT, varied, root=tmp_path / "sweeps", file=str(tmp_path / "experiment.py"))

    with Study(plan()) as study:
        claims = study.claim(2)
        assert [claim.values["model.activation"] for claim in claims] == ["relu", "mine.py:bend"]
        experiment = plan().trial(1, claims[1].values, 0).experiment
        assert isinstance(experiment.model.activation, Code)
        parameter_shapes(experiment)
    mine.write_text(MINE + "# another\n")
    with pytest.raises(UserError, match="has another code"):
        Study(plan())


def test_of_several_runs_each_gets_the_code_that_it_names(run_dir: Path, tmp_path: Path):
    plain = tmp_path / "plain"
    write_description(RunDir(plain), EXPERIMENT, {}, {})
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    assert code_by_run([run_dir, plain], [mine]) == [(mine,), ()]
    assert code_by_run([plain], [other]) == [(other,)]  # which `trusted_experiment` refuses
    with pytest.raises(UserError, match=r"--code .*other\.py: none of these models uses .*; they use mine\.py"):
        code_by_run([run_dir, plain], [mine, other])
