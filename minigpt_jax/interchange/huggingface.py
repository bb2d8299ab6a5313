"""A Hugging Face folder as a model of this project: its experiment and its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax import config, model, tokenizer
from minigpt_jax.cache import keep_compiled_programs
from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange.architectures import ARCHITECTURES
from minigpt_jax.interchange.mapping import Architecture
from minigpt_jax.interchange.weights import StoredTensor, stored_tensors
from minigpt_jax.parallel import devices
from minigpt_jax.tokenizer import HuggingFace
from minigpt_jax.tokenizer.huggingface_file import from_bytes

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def is_folder(path: str | Path) -> bool:
    """Whether a folder's config.json is one of Hugging Face, which names the architecture of a model."""
    try:
        settings = json.loads((Path(path).expanduser() / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and "model_type" in settings


def load_huggingface(folder: str | Path) -> LanguageModel:
    """The model of a Hugging Face folder: config.json, safetensors and tokenizer.json.

    Raises:
        UserError: a file is missing or damaged, or the model has a form that a `ModelConfig` cannot describe.
    """
    folder = Path(folder).expanduser()
    experiment = read_experiment(folder)
    pieces = _read_tokenizer(folder / TOKENIZER, experiment.tokenizer.rows)
    if pieces.adds_start:
        raise UserError(
            f"{folder / CONFIG}: it names no token that begins or ends a text; add the id of one as bos_token_id"
        )
    keep_compiled_programs()
    weights = devices.put_replicated(read_weights(folder, experiment))
    return LanguageModel(experiment, pieces, weights, step=0, path=folder.absolute())


def read_experiment(folder: str | Path) -> Experiment:
    """The experiment of a folder's model: its form, and a window of all its positions.

    Raises:
        UserError: config.json is missing or damaged, or describes a model that a `ModelConfig` cannot.
    """
    path = Path(folder).expanduser().absolute() / CONFIG
    architecture, settings = _read(path)
    try:
        described = architecture.model(settings)
        experiment = Experiment(
            _name(path.parent),
            data=DataConfig(layout="packed", document="file", sequence_length=described.sequence_length),
            tokenizer=TokenizerConfig("huggingface", described.vocabulary_size, file=path.with_name(TOKENIZER)),
            model=described.config,
        )
        config.validate(experiment)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return experiment


def model_type(folder: str | Path) -> str:
    """The name of the architecture of a folder's model. Raises UserError as `read_experiment`."""
    return _read(Path(folder).expanduser() / CONFIG)[0].model_type


def read_weights(folder: str | Path, experiment: Experiment) -> dict[str, Any]:
    """The parameter tree of a folder's model, in float32.

    Args:
        experiment: what `read_experiment` gives.

    Raises:
        UserError: a file or a tensor is missing, damaged or of another shape, or the weights have more tensors than
            config.json describes.
    """
    folder = Path(folder).expanduser()
    architecture, _ = _read(folder / CONFIG)
    leaves = jax.tree_util.tree_leaves_with_path(model.parameter_shapes(experiment))
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
    stored = stored_tensors(folder)
    params: dict[str, Any] = {}
    for tensor in architecture.named(experiment.model.num_layers):
        if any(path not in shapes for path in tensor.paths):
            continue
        found = _take(stored, tensor.name, architecture)
        parts = [shapes.pop(path) for path in tensor.paths]
        if found.shape != tensor.shape(parts):
            raise UserError(
                f"{found.file}: {tensor.name} is {_written(found.shape)}, and by {CONFIG} it is "
                f"{_written(tensor.shape(parts))}; fetch the whole folder again"
            )
        for path, array in tensor.arrays(found.read(), parts).items():
            _insert(params, path, np.ascontiguousarray(array, np.float32))
    assert not shapes, f"no tensor is named for {sorted(shapes)}"
    ignored = (*architecture.ignored, *(["lm_head.weight"] if experiment.model.tied_embeddings else []))
    if more := sorted(name for name in stored if not name.endswith(ignored)):
        raise UserError(
            f"{stored[more[0]].file}: {more[0]} has no place in a {architecture.model_type} as {CONFIG} describes it; "
            "take a folder of a language model alone"
        )
    return params


def _read_tokenizer(file: Path, rows: int) -> HuggingFace:
    """The tokenizer of a folder, without the tokens that were added to it and have no row in the embedding."""
    found = tokenizer.from_huggingface(file)
    if len(found) <= rows or found.adds_start:
        return found
    try:
        value = json.loads(file.read_bytes())
        value["added_tokens"] = [one for one in value["added_tokens"] if one["id"] < rows]
        found = from_bytes(json.dumps(value, ensure_ascii=False).encode(), file.parent)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{file}: its tokens past the {rows:,} rows of the embedding cannot be left out") from error
    if len(found) > rows:
        raise UserError(
            f"{file} has {len(found):,} pieces, and the embedding {rows:,} rows; fetch the whole folder again"
        )
    return found


def _read(path: Path) -> tuple[Architecture, Mapping[str, Any]]:
    """The architecture and the settings of config.json."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name the folder of a Hugging Face model") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise UserError(f"{path} names no model_type; name the folder of a Hugging Face model")
    if not isinstance(settings["model_type"], str) or settings["model_type"] not in ARCHITECTURES:
        raise UserError(f"{path}: model_type is {settings['model_type']}; it must be one of {', '.join(ARCHITECTURES)}")
    if settings.get("quantization_config") is not None:
        raise UserError(f"{path}: quantization_config is set; take a model that is not quantised")
    return ARCHITECTURES[settings["model_type"]], settings


def _name(folder: Path) -> str:
    """A name for the experiment, after the folder."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in folder.resolve().name)
    return name.strip(".") or "imported"


def _take(stored: dict[str, StoredTensor], name: str, architecture: Architecture) -> StoredTensor:
    """Removes and returns a tensor. Folders that were saved without an output layer omit the prefix of names."""
    for spelled in (name, name.removeprefix(architecture.prefix)):
        if spelled in stored:
            return stored.pop(spelled)
    raise UserError(f"the weights lack {name}, which a {architecture.model_type} has; fetch the whole folder")


def _insert(tree: dict[str, Any], path: str, array: np.ndarray) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = array


def _written(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
