"""The maximal-update parametrisation, muP: initial weights and learning rates by which one rate serves every width.

In the standard parametrisation, the wider a layer is, the more an update of its kernel changes its output, so that the
best learning rate falls as the model gets wider. muP (Yang et al. 2022, Tensor Programs V) scales each parameter such
that an update changes all activations by amounts that are independent of the width. Let m = width / base_width:

| parameters | initial values | rate of Adam and Lion | rate of Muon |
|---|---|---|---|
| kernels of the blocks | Glorot's: 1 / sqrt(width) | 1 / m | 1 |
| kernels of few outputs: output layer, sentinel, gates of a fixed number of heads | 1 / width | 1 / m | 1 / sqrt(m) |
| the pointer's queries and keys, of few outputs too, but normalised | Glorot's | 1 / m | 1 / sqrt(m) |
| embeddings, norms, biases, convolutions | unchanged | 1 | 1 |

A rate is a factor of the configured one. At the base width all factors are 1, and both parametrisations are the same.

Two things need more. Where heads grow with the width, queries also get 1 / sqrt(m) in their initial values and their
rates (with `qk_norm`, the scale of their norm does), because the product of a query and a key that have learned to
match grows like the width of the head, and attention divides it only by the root. And where the token embedding is also
the output layer, its logits are multiplied by 1 / m, because its initial values and rates cannot suit both. Nothing
else of the model's function differs from the standard parametrisation.

All of this supposes that the sizes of a model grow together: its feed-forward width, as it does if `feed_forward` is
None, and the width of its heads or, if `head_width` is given, their number. An update of Muon has singular values that
depend only on the shape of the matrix; if both sides grow, they are those that the spectral condition asks for (Yang et
al. 2023), and sqrt(m) times as large if only the number of inputs grows.
"""

from collections.abc import Sequence
from typing import Any

import jax

from minigpt_jax.config import ModelConfig

READOUTS = (("output",), ("pointer", "sentinel"))
"""The layers, by the ends of their paths, whose number of outputs does not grow with the width. That of the gates of
heads does not either, unless the number of heads grows."""
NORMALISED_READOUTS = (("pointer", "query"), ("pointer", "key"))
"""Those whose outputs are normalised, so that the size of their kernels has no effect on the model's function."""


def growth(config: ModelConfig) -> float:
    """m, the width relative to the base width; 1 in the standard parametrisation."""
    return config.width / config.base_width if config.parametrization == "mup" else 1.0


def initial(config: ModelConfig, params: Any) -> Any:
    """The initial parameters, given those that the initialisers of the layers drew."""
    if growth(config) == 1:
        return params
    return jax.tree_util.tree_map_with_path(lambda path, x: x * _initial_scale(config, names(path), x.shape), params)


def rate_scale(config: ModelConfig, path: Sequence[str], *, orthogonalised: bool = False) -> float:
    """The factor of a parameter's learning rate.

    Args:
        config: the model's configuration.
        path: the names that lead to the parameter, such as `("block_0", "attention", "query", "kernel")`.
        orthogonalised: whether its updates are those of Muon, and not of a rule that gives every entry an update of
            about the size of the rate, as Adam does.
    """
    m, scale = growth(config), _query_scale(config, path)
    if path[-1] != "kernel":
        return scale
    if not orthogonalised:
        return scale / m
    return scale / m**0.5 if _is_readout(config, path) or _ends(path, NORMALISED_READOUTS) else scale


def logit_scale(config: ModelConfig) -> float:
    """The factor of the output layer's logits; 1 unless the output layer is the token embedding."""
    return 1 / growth(config) if config.tied_embeddings else 1.0


def names(path: tuple[Any, ...]) -> list[str]:
    """The names in a path of `jax.tree_util`."""
    return [str(getattr(entry, "key", entry)) for entry in path]


def _initial_scale(config: ModelConfig, path: Sequence[str], shape: tuple[int, ...]) -> float:
    if path[-1] == "kernel" and _is_readout(config, path):
        m, outputs = growth(config), shape[-1]
        # Glorot's deviation at the base width, sqrt(2 / (inputs + outputs)), divided by m.
        return ((config.width + outputs) / (config.base_width + outputs)) ** 0.5 / m
    return _query_scale(config, path)


def _is_readout(config: ModelConfig, path: Sequence[str]) -> bool:
    """Whether the number of a layer's outputs does not grow with the width."""
    return _ends(path, READOUTS) or (config.head_width is None and _ends(path, (("attention", "gate"),)))


def _query_scale(config: ModelConfig, path: Sequence[str]) -> float:
    """The factor of the parameters that scale the queries of attention. Other parameters have 1."""
    layer = "query_norm" if config.qk_norm else "query"
    heads_grow = config.head_width is None
    return growth(config) ** -0.5 if heads_grow and _ends(path, (("attention", layer),)) else 1.0


def _ends(path: Sequence[str], layers: Sequence[tuple[str, ...]]) -> bool:
    """Whether the layer of a parameter is one of these, which are given by the ends of their paths."""
    return any(tuple(path[-1 - len(layer) : -1]) == layer for layer in layers)
