"""The model once more, in NumPy and float64, a row and a head at a time: a reference for other tests."""

import math
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from minigpt_jax.config import BOS_ID, ModelConfig

Floats = NDArray[np.float64]


def forward(params: Any, config: ModelConfig, tokens: NDArray[Any], window: int | None = None) -> Floats:
    """Logits [B, T, V] of rows of ids [B, T]; `window` tokens at most, itself included, are seen by each token."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    return np.stack([_row(params, config, row, window) for row in np.asarray(tokens)])


def cross_entropy(logits: Floats, labels: NDArray[Any]) -> Floats:
    """-log softmax(logits)[label], [B, T]."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probability, np.asarray(labels)[..., None], -1)[..., 0]


def _row(params: Any, config: ModelConfig, tokens: NDArray[Any], window: int | None) -> Floats:
    table = params["token_embedding"]["embedding"]
    x = table[tokens]
    if config.embedding_width:
        x = x @ params["embedding_projection"]["kernel"]
    if config.positions == "learned":
        x = x + params["position_embedding"]["embedding"][: len(tokens)]
    if config.embedding_norm:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
    for i in list(range(config.num_layers)) * config.repeats:
        block = params[f"block_{i}"]
        branches = [
            ("attention", lambda x, block=block: _attention(block["attention"], config, x, tokens, window)),
            ("feed_forward", lambda x, block=block: _feed_forward(block["feed_forward"], config, x)),
        ]
        for name, function in branches:
            norm, taps = f"{name}_norm", block.get(f"{name}_convolution", {"taps": np.zeros((0, 1))})["taps"]

            def branch(x: Floats, function: Any = function, taps: Floats = taps) -> Floats:
                return function(_convolved(taps, config, x, tokens))

            if config.norm_position == "pre":
                x = x + branch(_norm(block[norm], config, x))
            else:
                x = _norm(block[norm], config, x + branch(x))
    if config.norm_position == "pre":
        x = _norm(params["final_norm"], config, x)
    scale = config.base_width / config.width if config.parametrization == "mup" else 1.0
    tied = {"kernel": scale * table.T, "bias": params.get("output_bias", 0.0)}
    output = tied if config.tied_embeddings else params["output"]
    logits = _dense(output, x @ params["output_projection"]["kernel"] if config.embedding_width else x)
    cap = config.logit_softcap
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    return _pointed(params["pointer"], config, x, tokens, window, logits) if config.pointer else logits


def _pointed(
    params: Any, config: ModelConfig, x: Floats, tokens: NDArray[Any], window: int | None, logits: Floats
) -> Floats:
    """Of the softmax of the logits, with the sentinel's share, and of each context token with its own."""
    normed = lambda y, scale: y / np.sqrt((y**2).mean() + config.norm_epsilon) * scale  # noqa: E731
    zero, keys = np.zeros(config.width), []
    for s in range(len(x)):
        before = x[s - 1] if s and _sees(config, tokens, s, s - 1, None) else zero
        keys.append(normed(_dense(params["key"], np.concatenate([before, x[s]])), params["key_norm"]["scale"]))
    out = []
    for t in range(len(x)):
        query = normed(_dense(params["query"], x[t]), params["query_norm"]["scale"])
        context = [s for s in range(t + 1) if _sees(config, tokens, t, s, window)]
        sentinel = np.exp(_dense(params["sentinel"], x[t])[0] + params["sentinel_bias"][0])
        copied = {s: np.exp(query @ keys[s] / math.sqrt(config.pointer)) for s in context}
        of_layer = np.exp(logits[t])
        probability = of_layer / of_layer.sum() * sentinel
        for s, weight in copied.items():
            probability[tokens[s]] += weight
        out.append(np.log(probability / (sentinel + sum(copied.values())) * of_layer.sum()))
    return np.stack(out)


def _convolved(taps: Floats, config: ModelConfig, x: Floats, tokens: NDArray[Any]) -> Floats:
    out = x.copy()
    for t in range(len(x)):
        for i, tap in enumerate(taps[: t + 1]):
            if i == 0 or _sees(config, tokens, t, t - i, None):
                out[t] += tap * x[t - i]
    return out


def _sees(config: ModelConfig, tokens: NDArray[Any], t: int, s: int, window: int | None) -> bool:
    if s > t or (window is not None and t - s >= window):
        return False
    return not (config.isolate_documents and BOS_ID in tokens[s + 1 : t + 1])


def _attention(params: Any, config: ModelConfig, x: Floats, tokens: NDArray[Any], window: int | None) -> Floats:
    length, width = len(x), config.head_size
    group = config.num_heads // config.kv_heads
    query, key, value = (_dense(params[name], x) for name in ("query", "key", "value"))
    hidden = np.array([[not _sees(config, tokens, t, s, window) for s in range(length)] for t in range(length)])
    heads = []
    for n in range(config.num_heads):
        own, shared = slice(n * width, (n + 1) * width), slice(n // group * width, (n // group + 1) * width)
        q, k, v = query[:, own], key[:, shared], value[:, shared]
        if config.qk_norm:
            q, k = _norm(params["query_norm"], config, q), _norm(params["key_norm"], config, k)
        if config.positions == "rope":
            q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
        scores = np.where(hidden, -np.inf, q @ k.T / math.sqrt(width))
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(-1, keepdims=True))
        head = weights / weights.sum(-1, keepdims=True) @ v
        if config.head_gate:
            head = head / (1 + np.exp(-_dense(params["gate"], x)[:, n : n + 1]))
        heads.append(head)
    return _dense(params["out"], np.concatenate(heads, -1))


def rotate(x: Floats, theta: float) -> Floats:
    """Rotary embedding of the vectors x [T, H] at positions 0 to T-1: halves as real and imaginary parts, turned."""
    half = x.shape[-1] // 2
    turned = np.array(
        [[complex(row[i], row[half + i]) * np.exp(1j * t * theta ** (-i / half)) for i in range(half)]
         for t, row in enumerate(x)]
    )  # fmt: skip
    return np.concatenate([np.real(turned), np.imag(turned)], -1)


def _feed_forward(params: Any, config: ModelConfig, x: Floats) -> Floats:
    up = _dense(params["up"], x)
    if config.activation == "swiglu":
        gate = _dense(params["gate"], x)
        inner = up * gate / (1 + np.exp(-gate))
    elif config.activation == "gelu_erf":
        inner = 0.5 * up * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
    elif config.activation == "gelu":  # by tanh, as GPT-2 has it
        inner = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    else:
        inner = np.maximum(up, 0) ** (2 if config.activation == "relu2" else 1)
    return _dense(params["down"], inner)


def _dense(params: Any, x: Floats) -> Floats:
    return x @ params["kernel"] + params.get("bias", 0.0)


def _norm(params: Any, config: ModelConfig, x: Floats) -> Floats:
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * params["scale"] + params.get("bias", 0.0)
