"""A run as a folder or a file that other tools read."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import minigpt_jax
from minigpt_jax import generate
from minigpt_jax.cache import cache_dir
from minigpt_jax.config import Experiment, code, dumps, flag_name
from minigpt_jax.config.options import names_code
from minigpt_jax.corpora import open_corpus
from minigpt_jax.data import store
from minigpt_jax.errors import UserError
from minigpt_jax.files import make_folder
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange import gguf_writer, safetensors_writer, stock, tokenizer_files
from minigpt_jax.interchange.architectures import MINIGPT
from minigpt_jax.interchange.gguf_architectures import LLAMA_CPP
from minigpt_jax.interchange.huggingface import CONFIG
from minigpt_jax.interchange.model_card import Exported, model_card
from minigpt_jax.interchange.safetensors_writer import Dtype
from minigpt_jax.interchange.stock import Fit
from minigpt_jax.interchange.weights import WEIGHTS, metadata
from minigpt_jax.storage.checkpoint import Step
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.tokenizer import WordPiece

Format = Literal["huggingface", "gguf"]
GENERATION_CONFIG = "generation_config.json"
_TEMPLATES = Path(__file__).with_name("templates")
_OWN_CODE = ("configuration_minigpt.py", "modeling_minigpt.py")
_CARD = "README.md"
_FILES = {CONFIG, WEIGHTS, GENERATION_CONFIG, _CARD, *_OWN_CODE, "tokenizer.json", "tokenizer_config.json"}
_MARK = "minigpt_jax"
"""The key in the header of the weights by which a folder is known for an export."""


def export(
    run_dir: str | Path, to: str | Path, format: Format = "huggingface", dtype: Dtype = "float32", step: Step = None
) -> Exported:
    """Writes the model of a run, with its tokenizer, for other tools.

    By default it is a folder that Hugging Face's Transformers loads. The model's class is one of Transformers if one
    computes exactly the same function. Otherwise the folder carries the code of the class, and `trust_remote_code=True`
    loads it. With "gguf" it is a file for llama.cpp, which has to have an architecture that computes exactly the same
    function.

    The weights are those that are sampled from: the moving average if the run keeps one. The folder or file appears
    once it is complete; an earlier export in its place is replaced.

    Args:
        run_dir: a run directory.
        to: the folder, or the file, whose name ends in .gguf.
        format: huggingface or gguf.
        dtype: the type of the weights: float32, bfloat16 or float16. In a GGUF file vectors are always float32.
        step: the checkpoint: a step, or "best" for the lowest validation loss; the latest by default.

    Raises:
        UserError: the run or its checkpoint is missing or damaged, its model needs code of the user's own, an argument
            is not allowed, there is something else in the place of the export, a weight is too large for the type, or
            llama.cpp has no such architecture or tokenizer.
    """
    for name, value, allowed in (("format", format, get_args(Format)), ("dtype", dtype, get_args(Dtype))):
        if value not in allowed:
            raise UserError(f"--{name} {value}: must be {' or '.join(allowed)}")
    if format == "gguf":
        gguf_writer.check_installed()
    target = _target_file(to) if format == "gguf" else _target(to)
    _refuse_code(RunDir(run_dir))
    make_folder(target.parent, "--to")
    lm = generate.load(run_dir, step)
    with _whole(target) as partial:
        if format == "gguf":
            return gguf_writer.write(lm, partial, dtype, target.stem)
        partial.mkdir()
        return write(lm, partial, dtype, target.name, read_metrics(RunDir(run_dir)))


def write(lm: LanguageModel, folder: Path, dtype: Dtype, name: str, metrics: Iterable[Mapping[str, Any]]) -> Exported:
    """Writes a model into an empty folder; see `export`.

    Args:
        name: the name of the model.
        metrics: the lines of its run's metrics.jsonl.
    """
    fit, reason = _class(lm)
    tensors = ((name, shape, parts.join) for name, shape, parts in fit.tensors())
    size = safetensors_writer.write(folder / WEIGHTS, tensors, dtype, {_MARK: minigpt_jax.__version__})
    (folder / CONFIG).write_text(dumps(_config(lm, fit, dtype)), "utf-8")
    (folder / GENERATION_CONFIG).write_text(dumps(_generation_config(lm)), "utf-8")
    own_code = fit.architecture is MINIGPT
    for file in _OWN_CODE if own_code else ():
        shutil.copyfile(_TEMPLATES / file, folder / file)
    theirs = tokenizer_files.write_tokenizer(lm.tokenizer, folder, lm.end_id, lm.model.sequence_length)
    differing = None
    if isinstance(lm.tokenizer, WordPiece) and (texts := _validation_texts(lm.experiment)):
        differing = tokenizer_files.differing_lines(lm.tokenizer, theirs, texts)
    done = Exported(fit.architecture.class_name, reason, lm.step, size, differing)
    llama_cpp = not stock.nearest_fits(lm.experiment, lm.weights, LLAMA_CPP)[0].obstacles
    card = model_card(lm, done, metrics, name, own_code=own_code, llama_cpp=llama_cpp)
    (folder / _CARD).write_text(card, "utf-8")
    return done


def _class(lm: LanguageModel) -> tuple[Fit, str]:
    """The class that holds the model, and why it is that one."""
    nearest = stock.nearest_fits(lm.experiment, lm.weights)[0]
    if not nearest.obstacles:
        return nearest, "a class of Transformers, which computes exactly this model"
    return stock.own_fit(lm.experiment, lm.weights), (
        f"no class of Transformers computes this model: the nearest, {nearest.architecture.class_name}, lacks "
        f"{', '.join(nearest.obstacles)}; the folder carries a class of its own, which trust_remote_code=True loads"
    )


def _config(lm: LanguageModel, fit: Fit, dtype: Dtype) -> dict[str, Any]:
    """config.json."""
    architecture = fit.architecture
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **fit.settings,
        **_token_ids(lm),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before version 5 of Transformers
    }
    if architecture is MINIGPT:
        configuration, modeling = (name.removesuffix(".py") for name in _OWN_CODE)
        config["auto_map"] = {
            "AutoConfig": f"{configuration}.MiniGPTConfig",
            "AutoModelForCausalLM": f"{modeling}.{architecture.class_name}",
        }
    return config


def _token_ids(lm: LanguageModel) -> dict[str, Any]:
    special, ends = lm.tokenizer.special, list(lm.end_ids)
    return {
        "bos_token_id": special.start,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": special.line_end,
    }


def _generation_config(lm: LanguageModel) -> dict[str, Any]:
    """generation_config.json: the run's sampling, and the tokens that are never sampled here."""
    sample = lm.experiment.sample
    config = {**_token_ids(lm), "do_sample": sample.temperature > 0}
    if sample.temperature > 0:
        config |= {"temperature": sample.temperature, "top_k": sample.k}
    if sample.max_new_tokens is None:
        config["max_length"] = lm.model.sequence_length
    else:
        config["max_new_tokens"] = sample.max_new_tokens
    never = {*lm.tokenizer.special.banned, *range(len(lm.tokenizer), lm.model.vocabulary_size)}
    config["suppress_tokens"] = sorted(never - set(lm.end_ids))
    return config


def _validation_texts(experiment: Experiment) -> list[str]:
    """The documents of the validation part, or none if the corpus is not on this machine."""
    data, cache = experiment.data, cache_dir()
    is_download = data.corpus == "simplebooks" and data.archive is None
    if names_code(data.corpus) or (is_download and not (cache / "simplebooks").is_dir()):
        return []
    try:
        return list(store.documents(open_corpus(data, cache), "valid", data.layout_of("valid"), data.min_bytes))
    except (UserError, OSError):
        return []


def _refuse_code(run_dir: RunDir) -> None:
    for option, value in code.named(run_dir.experiment()):
        if option.startswith("model."):
            raise UserError(
                f"{run_dir.path} has --{flag_name(option)} {value}, code of your own, which no other tool can run; "
                "export a run whose model is this package's"
            )


def _target(to: str | Path) -> Path:
    """The folder to write. Raises UserError if it cannot be made, or holds anything but an earlier export."""
    target = Path(os.path.abspath(Path(to).expanduser()))
    existing = _existing(target, to)
    if target.suffix == ".gguf":
        raise UserError(f"--to {to}: it names a GGUF file, and --format huggingface writes a folder; add --format gguf")
    if not existing.is_dir():
        raise UserError(f"--to {to}: {existing} is no folder; name another one")
    names = sorted(path.name for path in target.iterdir()) if existing == target else []
    if names and not _is_export(target):
        raise UserError(f"--to {to}: it holds {names[0]} and is no earlier export; name a new folder")
    if foreign := [name for name in names if name not in _FILES]:
        raise UserError(f"--to {to}: it holds {foreign[0]}, which no export wrote; name a new folder, or move that")
    return target


def _target_file(to: str | Path) -> Path:
    """The file to write. Raises UserError if it cannot be made, or is anything but an earlier export."""
    target = Path(os.path.abspath(Path(to).expanduser()))
    existing = _existing(target, to)
    if target.is_dir():
        raise UserError(f"--to {to}: it is a folder, and a GGUF is a file; give --to {Path(to) / 'model.gguf'}")
    if target.suffix != ".gguf":
        raise UserError(f"--to {to}: the name of a GGUF file ends in .gguf; give --to {to}.gguf")
    if existing == target and not (target.is_file() and gguf_writer.is_export(target)):
        raise UserError(f"--to {to}: it is no earlier export; name another file")
    if existing != target and not existing.is_dir():
        raise UserError(f"--to {to}: {existing} is no folder; name another one")
    return target


def _existing(target: Path, to: str | Path) -> Path:
    """The target or the nearest folder above it that exists. Raises UserError if it cannot be written."""
    existing = next(path for path in (target, *target.parents) if os.path.lexists(path))
    if existing.is_dir() and not os.access(existing, os.W_OK):
        raise UserError(f"--to {to}: {existing} cannot be written; name another folder")
    return existing


def _is_export(folder: Path) -> bool:
    try:
        return _MARK in metadata(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError):
        return False


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path beside the target, for a folder or a file that takes its place at the end or is removed after an error."""
    partial, earlier = (target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial") for _ in range(2))
    try:
        yield partial
        if target.is_dir():  # a file is replaced at once
            target.rename(earlier)
        try:
            partial.rename(target)
        except OSError:
            if earlier.exists():
                earlier.rename(target)
            raise
    finally:
        for path in (partial, earlier):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
