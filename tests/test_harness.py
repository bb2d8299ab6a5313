"""Runs as a model of lm-evaluation-harness, against its own route through Transformers on the exported folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tiny_experiment import changed

import minigpt_jax
from minigpt_jax import cli, model, tokenizer
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange import harness
from minigpt_jax.interchange.export import write

MiniGPT: Any = harness.MiniGPT  # the types of the decorator that registers it, and of lm_eval, are wrong
evaluate: Any = lm_eval.simple_evaluate
WINDOW = 40
LETTERS = "abcdefgh ."
MODEL = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=4,
    feed_forward=24,
    norm="rmsnorm",
    norm_position="pre",
    positions="rope",
    activation="swiglu",
    use_bias=False,
)
TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{context}}"
        doc_to_choice: choices
        doc_to_target: answer
        target_delimiter: ""
    """,
    "rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{context}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
    """,
    "writing": """
        output_type: generate_until
        doc_to_text: "{{context}}"
        doc_to_target: "{{choices[0]}}"
        generation_kwargs: {until: [".", "gh"], max_gen_toks: 12, do_sample: false}
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
    """,
}


def random_model(config: ModelConfig, layout: str = "packed") -> LanguageModel:
    letters = tokenizer.train(TokenizerConfig(kind="char"), [LETTERS])
    experiment = Experiment(
        "random",
        data=DataConfig(layout=layout, sequence_length=WINDOW),  # type: ignore[arg-type]
        tokenizer=TokenizerConfig(kind="char", vocabulary_size=len(letters)),
        model=config,
    )
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(0.5 * (leaf.ndim == 1), 0.5, leaf.shape).astype(np.float32)  # noqa: E731
    return LanguageModel(experiment, letters, jax.tree.map(draw, model.parameter_shapes(experiment)))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return random_model(MODEL)


@pytest.fixture(scope="module")
def documents(lm: LanguageModel) -> list[dict[str, Any]]:
    """Contexts of all lengths, the empty one and ones longer than the window included. Some choices are greedy."""
    rng = np.random.default_rng(0)
    text = lambda length: "".join(rng.choice(list(LETTERS[:-1]), length))  # noqa: E731
    contexts = [text(length) for length in (0, 3, 17, 26, WINDOW - 1, WINDOW, 3 * WINDOW)]
    greedy = lm.generate([one[: WINDOW - 5] for one in contexts], max_new_tokens=4)
    return [
        {"context": context, "choices": [one.text, "a", text(5)], "answer": 0}
        for context, one in zip(contexts, greedy, strict=True)
    ]


@pytest.fixture(scope="module")
def tasks(documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    data = {"data_files": {"test": str(folder / "documents.jsonl")}, "cache_dir": str(folder / "cache")}
    for name, lines in TASKS.items():
        head = f"task: tiny_{name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + "\n".join(line.strip() for line in lines.splitlines()))
    return folder


def answers(folder: Path, task: str, asked: Any, **arguments: Any) -> tuple[dict[str, Any], list[Any]]:
    """The figures of a task, and the answers to its requests."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluate(
        asked, model_args=arguments or None, tasks=[f"tiny_{task}"], task_manager=manager, bootstrap_iters=0
    )
    assert found is not None
    samples = sorted(found["samples"][f"tiny_{task}"], key=lambda one: one["doc_id"])
    return found["results"][f"tiny_{task}"], [one["resps"] for one in samples]


@pytest.mark.parametrize("layout", ["packed", "lines"])
@pytest.mark.parametrize(("task", "start_token"), [("choice", None), ("rolling", False), ("writing", None)])
def test_answers_are_those_of_transformers(
    task: str, start_token: bool | None, layout: str, lm: LanguageModel, tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra huggingface is not installed")
    pytest.importorskip("accelerate", reason="the extra huggingface is not installed")
    lm = lm if layout == "packed" else random_model(dataclasses.replace(MODEL, pointer=4, convolution=2), layout)
    write(lm, tmp_path, "float32", "folder", [])
    figures, ours = answers(tasks, task, MiniGPT(lm))
    expected, theirs = answers(
        tasks,
        task,
        "hf",
        pretrained=str(tmp_path),
        device="cpu",
        batch_size=1 if task == "writing" else 4,
        add_bos_token=start_token,
        trust_remote_code=True,
    )
    assert figures.keys() == expected.keys()
    if task == "writing":
        # [UNK] is special there, and left out. The last three contexts are cut, here after the start token.
        assert [text.replace("[UNK]", "") for [[text]] in ours[:4]] == [text for [[text]] in theirs[:4]]
        assert len({str(one) for one in ours}) > 3
        return
    numbers = [
        np.array([np.hstack([choice[0] for choice in one]) for one in answers], float) for answers in (ours, theirs)
    ]
    np.testing.assert_allclose(*numbers, atol=1e-3, rtol=1e-5)
    for name, value in expected.items():
        if isinstance(value, float):
            assert figures[name] == pytest.approx(value, rel=1e-4)


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


def test_answers_depend_on_no_batch(lm: LanguageModel, documents: list[dict[str, Any]]) -> None:
    pairs = [request("loglikelihood", one["context"], choice) for one in documents for choice in one["choices"]]
    contexts = [request("generate_until", one["context"], {"temperature": 0.8, "max_gen_toks": 6}) for one in documents]
    all_at_once, in_twos = MiniGPT(lm, batch_size="auto"), MiniGPT(lm, batch_size=2)
    for alone, together in zip(in_twos.loglikelihood(pairs), all_at_once.loglikelihood(pairs), strict=True):
        assert alone == (pytest.approx(together[0], abs=1e-4), together[1])
    drawn = all_at_once.generate_until(contexts)
    assert in_twos.generate_until(contexts) == drawn
    assert MiniGPT(lm, seed=1).generate_until(contexts) != drawn


def test_sampling_is_what_was_asked(lm: LanguageModel) -> None:
    asked = MiniGPT(lm)
    contexts = ["abc", "abc", "h"]
    texts = lambda **settings: asked.generate_until(  # noqa: E731
        [request("generate_until", one, {"until": [], "max_gen_toks": 8, **settings}) for one in contexts]
    )
    greedy = texts()
    assert greedy[0] == greedy[1] == lm.generate("abc", max_new_tokens=8, stop=lm.end_ids)[0].text
    assert texts(do_sample=False, temperature=1.0, top_k=3) == greedy
    assert texts(do_sample=True, temperature=0.0) == greedy
    assert texts(do_sample=True, temperature=1.0, top_k=1) == greedy
    assert texts(do_sample=True, temperature=1.0, top_p=1e-6) == greedy
    drawn = texts(do_sample=True)
    assert drawn == texts(temperature=1.0, top_k=0)
    assert drawn[0] != drawn[1]
    expected = lm.generate(contexts, "random", max_new_tokens=8, stop=lm.end_ids)
    assert drawn == [one.text for one in expected]
    with pytest.raises(UserError, match=r"generation argument num_beams=4: must be one of until, max_gen_toks"):
        texts(num_beams=4)


def test_long_contexts_are_cut_with_one_warning(lm: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    asked = MiniGPT(lm)
    long = "abcdefgh" * 20
    requests = [request("generate_until", long, {"max_gen_toks": room}) for room in (8, 8, 500)]
    texts = asked.generate_until(requests, disable_tqdm=True)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(" on ")[0].split(" new ")[0] for line in warnings] == [
        "minigpt: warning: contexts are cut",
        "minigpt: warning: fewer than 500",
    ]
    kept = long[len(long) - (WINDOW - 8 - 1) :]
    assert texts[0] == texts[1] == lm.generate(kept, max_new_tokens=8, stop=lm.end_ids)[0].text
    kept = long[len(long) - (WINDOW // 2 - 1) :]
    room = WINDOW - len(kept)
    assert texts[2] == lm.generate(kept, max_new_tokens=room, stop=lm.end_ids)[0].text
    asked.loglikelihood([request("loglikelihood", long, "a")] * 2, disable_tqdm=True)
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match=f"has {WINDOW + 1} tokens, and the window holds {WINDOW}"):
        asked.loglikelihood([request("loglikelihood", "a", "b" * (WINDOW + 1))])


@pytest.mark.parametrize(
    ("given", "rows"), [(None, None), (1, None), ("auto", None), ("auto:4", None), ("8", 8), (8, 8)]
)
def test_batch_size(given: Any, rows: int | None, lm: LanguageModel) -> None:
    assert MiniGPT(lm, batch_size=given).batch_size == rows
    with pytest.raises(UserError, match="--batch_size many: must be auto, or a number from 1"):
        MiniGPT(lm, batch_size="many")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    minigpt_jax.run(changed("train", steps=2, evaluate_every=1, checkpoint_every=1), path)
    return path


def command(*words: object) -> int:
    try:
        return cli.main(["lm_eval", *map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_command(run_dir: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--tasks", "tiny_choice,tiny_rolling", "--include_path", tasks, "--output_path", tmp_path / "out.json"]
    assert command("--model", "minigpt", "--model_args", f"run_dir={run_dir},step=1", *asked) == 0
    assert "tiny_choice" in capsys.readouterr().out
    [file] = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert found["config"]["model_step"] == 1
    lm = minigpt_jax.load(run_dir, 1)
    expected, _ = answers(tasks, "rolling", MiniGPT(lm))
    assert found["results"]["tiny_rolling"]["byte_perplexity,none"] == pytest.approx(expected["byte_perplexity,none"])


def test_mistakes_are_told_in_one_line(run_dir: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", "minigpt", "--include_path", tasks]
    for words, line in [
        (["--tasks", "tiny_choice", "--model_args", "run_dir=nowhere"], "nowhere"),
        (["--tasks", "tiny_choise", "--model_args", f"run_dir={run_dir}"], "lm_eval: Tasks not found: tiny_choise"),
    ]:
        capsys.readouterr()
        assert command(*asked, *words) == 2
        [error] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("minigpt: ")]
        assert line in error


def test_arguments_of_the_model_are_checked(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"--model_args run_dir=DIR is missing"):
        MiniGPT()
    with pytest.raises(UserError, match=r"--model_args steps=3: must be one of run_dir, step, max_gen_toks"):
        MiniGPT.create_from_arg_string("run_dir=runs/x,steps=3")
    with pytest.raises(UserError, match="--apply_chat_template: a run of this project has no chat template"):
        MiniGPT(lm).chat_template(True)
