"""Which class of Transformers can hold a model, and the model's weights as that class has them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from minigpt_jax import model
from minigpt_jax.config import Experiment, ModelConfig, flag_name
from minigpt_jax.interchange.architectures import MINIGPT, STOCK
from minigpt_jax.interchange.mapping import Architecture, Model
from minigpt_jax.model import parametrization

Arrays = Mapping[str, np.ndarray]
"""The parameters by their dotted paths."""
_BIASES = ("use_bias", "qkv_bias", "norm_bias")
_OF_TRAINING = ("dropout", "zero_init", "parametrization", "base_width", "isolate_documents", "dtype", "remat")


class Fit(NamedTuple):
    """How an architecture holds a model.

    Attributes:
        architecture: the architecture.
        settings: its settings for config.json.
        experiment: the experiment of the model that the settings describe.
        arrays: the parameters from which `tensors` makes those of that model.
        obstacles: the fields that the architecture cannot express, with their values. If there are any, the model is
            another one.
        needed: the flags of the nearest model that the architecture expresses, one for each obstacle.
    """

    architecture: Architecture
    settings: dict[str, Any]
    experiment: Experiment
    arrays: Arrays
    obstacles: tuple[str, ...]
    needed: tuple[str, ...]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], "Parts"]]:
        """The name and the shape of each tensor, and the parts that `Parts.join` makes it of."""
        shapes = {path: leaf.shape for path, leaf in _flat(model.parameter_shapes(self.experiment)).items()}
        for tensor in self.architecture.named(self.experiment.model.num_layers):
            if all(path in shapes for path in tensor.paths):
                parts = [shapes[path] for path in tensor.paths]
                yield tensor.name, tensor.shape(parts), Parts(self, tensor, parts)


class Parts(NamedTuple):
    """The arrays of which a tensor is made."""

    fit: Fit
    tensor: Any
    shapes: list[tuple[int, ...]]

    def join(self) -> np.ndarray:
        """The tensor, in float32."""
        head_size = self.fit.experiment.model.head_size
        paths = zip(self.tensor.paths, self.shapes, strict=True)
        return self.tensor.tensor([_array(self.fit.arrays.get(path), shape, head_size) for path, shape in paths])


def nearest_fits(experiment: Experiment, params: Any, architectures: Iterable[Architecture] = STOCK) -> list[Fit]:
    """How each of the architectures would hold a model, those with the fewest obstacles first."""
    folded, arrays = _folded(experiment, _flat(params))
    return sorted((_fit(one, folded, arrays) for one in architectures), key=lambda fit: len(fit.obstacles))


def own_fit(experiment: Experiment, params: Any) -> Fit:
    """How the class that an exported folder carries holds a model."""
    return _fit(MINIGPT, *_standard(experiment, _flat(params)))


def _fit(architecture: Architecture, experiment: Experiment, arrays: Arrays) -> Fit:
    vocabulary_size, window = experiment.tokenizer.rows, experiment.data.sequence_length
    settings = architecture.settings_of(Model(experiment.model, vocabulary_size, window))
    described = architecture.model(settings).config
    ours, theirs = _facts(experiment.model), _facts(described)
    obstacles = {
        name: value
        for name, value in ours.items()
        if value != theirs.get(name, value)
        and not (name in _BIASES and theirs[name])  # the missing biases are written as 0
        and not (name == "num_kv_heads" and theirs[name] == theirs["num_heads"])  # each is repeated for its group
    }
    needed = {name: theirs[name] for name in obstacles}
    width, heads = experiment.model.width, experiment.model.num_heads
    if architecture is not MINIGPT and width % heads:
        obstacles["num_heads"] = f"{heads}, which does not divide the width of {width}"
        needed["num_heads"] = next(number for number in range(heads + 1, width + 1) if width % number == 0)
    return Fit(
        architecture,
        settings,
        dataclasses.replace(experiment, model=described),
        arrays,
        tuple(f"--model.{flag_name(name)} {value}" for name, value in obstacles.items()),
        tuple(_flag(name, value) for name, value in needed.items()),
    )


def _flag(name: str, value: Any) -> str:
    """The flag that gives a field of the model a value."""
    if isinstance(getattr(ModelConfig, name), bool):  # not None, as of biases that follow another field
        return f"--model.{flag_name(name if value else f'no_{name}')}"
    return f"--model.{flag_name(name)} {value}"


def _facts(config: ModelConfig) -> dict[str, Any]:
    """The fields that determine what a model computes, with their defaults resolved."""
    facts: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _OF_TRAINING
    }
    facts |= {f"{part}_bias": config.has_bias(part) for part in ("qkv", "norm", "output")}
    facts |= {"head_width": config.head_size, "num_kv_heads": config.kv_heads}
    facts["feed_forward"] = config.feed_forward_width
    if config.norm == "rmsnorm":
        del facts["norm_bias"]
    if config.positions == "learned":
        del facts["rope_theta"]
    return facts


def _folded(experiment: Experiment, arrays: Arrays) -> tuple[Experiment, Arrays]:
    """The same model without what its weights can express.

    These are muP, a factorised embedding, repeats, the norm of the embedding, and a bias of zeros.
    """
    experiment, arrays = _standard(experiment, arrays)
    config, arrays = experiment.model, dict(arrays)
    if config.repeats > 1:
        for path, array in list(arrays.items()):
            block, _, rest = path.partition(".")
            if block.startswith("block_"):
                first = int(block.removeprefix("block_"))
                for i in range(first, config.num_layers * config.repeats, config.num_layers):
                    arrays[f"block_{i}.{rest}"] = array
        config = dataclasses.replace(config, num_layers=config.num_layers * config.repeats, repeats=1)
    if config.embedding_norm and config.positions == "rope":  # learned positions are added before the norm
        table = arrays["token_embedding.embedding"]
        if config.tied_embeddings:
            config, arrays = _untied(config, arrays)
        rms = np.sqrt(np.mean(np.square(table), axis=-1, keepdims=True) + config.norm_epsilon)
        arrays["token_embedding.embedding"] = table / rms
        config = dataclasses.replace(config, embedding_norm=False)
    bias = "output_bias" if config.tied_embeddings else "output.bias"
    if config.has_bias("output") and not arrays[bias].any():
        del arrays[bias]
        config = dataclasses.replace(config, output_bias=False)
    return dataclasses.replace(experiment, model=config), arrays


def _standard(experiment: Experiment, arrays: Arrays) -> tuple[Experiment, dict[str, np.ndarray]]:
    """The same model in the standard parametrisation, and with an embedding that is not factorised.

    The factor of its logits and the projections of its embedding become part of the embedding and the output layer.
    """
    config, arrays = experiment.model, dict(arrays)
    if config.tied_embeddings and (parametrization.logit_scale(config) != 1 or config.embedding_width):
        config, arrays = _untied(config, arrays)
    if config.embedding_width:
        table = arrays["token_embedding.embedding"]
        arrays["token_embedding.embedding"] = table @ arrays.pop("embedding_projection.kernel")
        arrays["output.kernel"] = arrays.pop("output_projection.kernel") @ arrays["output.kernel"]
        config = dataclasses.replace(config, embedding_width=None)
    return dataclasses.replace(experiment, model=dataclasses.replace(config, parametrization="standard")), arrays


def _untied(config: ModelConfig, arrays: Arrays) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The same model with an output layer of its own, in place of the token embedding."""
    arrays = dict(arrays)
    arrays["output.kernel"] = parametrization.logit_scale(config) * arrays["token_embedding.embedding"].T
    if config.has_bias("output"):
        arrays["output.bias"] = arrays.pop("output_bias")
    return dataclasses.replace(config, tied_embeddings=False), arrays


def _array(array: np.ndarray | None, shape: tuple[int, ...], head_size: int) -> np.ndarray:
    """An array in the shape that an architecture has: a missing bias is 0, and a head of keys is that of its group."""
    if array is None:
        return np.zeros(shape, np.float32)
    if array.shape == shape:
        return array
    heads = array.reshape(*shape[:-1], -1, head_size)
    return np.repeat(heads, shape[-1] // array.shape[-1], axis=-2).reshape(shape)


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their dotted paths; arrays on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return {
        path: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf, np.float32)
        for path, leaf in named.items()
    }
