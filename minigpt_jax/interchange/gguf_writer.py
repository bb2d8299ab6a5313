"""A model as a GGUF file, which llama.cpp and the programs made with it run.

The file is the metadata, among them the vocabulary, and then the tensors, in the shapes of PyTorch's.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import minigpt_jax
from minigpt_jax.config import ModelConfig
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.interchange import gguf_vocabulary, stock
from minigpt_jax.interchange.gguf_architectures import LLAMA_CPP, OUTPUT_REQUIRED, PAIRS_OF_NEIGHBOURS
from minigpt_jax.interchange.model_card import Exported
from minigpt_jax.interchange.safetensors_writer import Dtype, cast, size_of
from minigpt_jax.interchange.stock import Fit, Parts

MARK = "minigpt_jax.version"
"""The key of the metadata by which a file is known for an export."""
_TYPES: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FILE_TYPES: Mapping[Dtype, str] = {"float32": "ALL_F32", "bfloat16": "MOSTLY_BF16", "float16": "MOSTLY_F16"}
# With these, xIELU is relu²: alpha_p x² for positive x, as alpha_p is the softplus of the first, and 0 for the others.
_RELU2 = {"alpha_p": math.log(math.e - 1), "alpha_n": -1e4, "beta": 0.0, "eps": -1e-6}
_Tensor = tuple[str, tuple[int, ...], Dtype, Callable[[], np.ndarray]]


def check_installed() -> None:
    """Raises UserError if the package that writes GGUF is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--format gguf needs the package gguf; pip install 'minigpt_jax[gguf]'")


def is_export(file: Path) -> bool:
    """Whether a file is one that `write` wrote."""
    import gguf

    try:
        return MARK in gguf.GGUFReader(file).fields
    except (OSError, ValueError, IndexError):  # no GGUF, or an empty or truncated one
        return False


def write(lm: LanguageModel, file: Path, dtype: Dtype, name: str) -> Exported:
    """Writes a model into a new file.

    Args:
        dtype: the type of matrices; vectors and learned positions are float32.
        name: the name of the model.

    Raises:
        UserError: llama.cpp has no architecture that computes this model or no such tokenizer, or a weight is too large
            for the type.
    """
    import gguf

    fit = _fit(lm)
    vocabulary = gguf_vocabulary.vocabulary(lm)
    architecture = fit.architecture.model_type
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_string(MARK, minigpt_jax.__version__)
    _add_form(writer, fit)
    vocabulary.add_to(writer)
    tensors = list(_tensors(fit, dtype))
    try:
        for tensor, shape, kind, _ in tensors:
            stored = gguf.GGMLQuantizationType[_TYPES[kind]]
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size_of(shape, kind), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, _, kind, read in tensors:
            writer.write_tensor_data(cast(tensor, read(), kind).view(np.uint8))
    finally:
        writer.close()
    reason = "an architecture of llama.cpp, which computes exactly this model"
    size = sum(size_of(shape, kind) for _, shape, kind, _ in tensors)
    return Exported(architecture, reason, lm.step, size, tokenizer=vocabulary.about)


def _fit(lm: LanguageModel) -> Fit:
    """How an architecture of llama.cpp holds the model. Raises UserError if none computes it."""
    nearest = stock.nearest_fits(lm.experiment, lm.weights, LLAMA_CPP)[0]
    if nearest.obstacles:
        raise UserError(
            f"--format gguf: no architecture of llama.cpp computes a model with {', '.join(nearest.obstacles)}; the "
            f"nearest is {nearest.architecture.model_type}, which needs {', '.join(nearest.needed)}: train such a "
            "model, or take --format huggingface"
        )
    return nearest


def _add_form(writer: Any, fit: Fit) -> None:
    """The sizes and constants of the model."""
    config: ModelConfig = fit.experiment.model
    writer.add_context_length(fit.experiment.data.sequence_length)
    writer.add_vocab_size(fit.experiment.tokenizer.rows)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.feed_forward_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    if config.norm == "rmsnorm":
        writer.add_layer_norm_rms_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    if config.positions == "rope":
        writer.add_rope_dimension_count(config.head_size)
        writer.add_rope_freq_base(config.rope_theta)
    if fit.architecture.model_type == "apertus":
        for name, value in _RELU2.items():
            getattr(writer, f"add_xielu_{name}")([value] * config.num_layers)


def _tensors(fit: Fit, dtype: Dtype) -> Iterator[_Tensor]:
    """The name, the shape and the type of each tensor, and a function that returns it.

    llama.cpp adds vectors and positions to activations, for which they have to be float32.
    """
    import gguf

    config, architecture = fit.experiment.model, fit.architecture.model_type
    kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_layers)
    for theirs, shape, parts in fit.tensors():
        name = names.get_name(theirs, (".weight", ".bias"))
        assert name is not None, f"{theirs} has no name in a {architecture}"
        read = parts.join
        if architecture in PAIRS_OF_NEIGHBOURS and (".attn_q." in name or ".attn_k." in name):
            read = functools.partial(_interleaved, parts, config.head_size)
        of = "float32" if len(shape) == 1 or name == "position_embd.weight" else dtype
        yield name, shape, of, read
        if name == "token_embd.weight" and config.tied_embeddings and architecture in OUTPUT_REQUIRED:
            yield "output.weight", shape, of, read


def _interleaved(parts: Parts, head_size: int) -> np.ndarray:
    """Puts the two features of each head that are turned together beside each other; they lie half a head apart."""
    array = parts.join()
    return array.reshape(-1, 2, head_size // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
