"""A model that minigpt_jax trained, in PyTorch.

Shapes: B batch, T query positions, S positions of the context (those in the cache and the T new ones), D width, N
heads, K key-value heads, H head width, V vocabulary, P width of the pointer.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_minigpt import MiniGPTConfig

# The argument and the output that hold the cache have had two names.
CACHE = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)
NOTHING = -1e9  # the logarithm of no probability
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "relu2": lambda x: F.relu(x).square(),
}


class Context:
    """The earlier positions that a forward pass can see.

    A cache has a layer for each thing that is kept of every position: keys and values of attention, the inputs of a
    convolution, the pointer's hidden states. Calls of `extend` take these layers in turn, in the same order in each
    pass. All are tensors [B, heads, positions, width], so that beam search can reorder them.

    Attributes:
        seen: [B, S], the positions that hold a token and no padding.
        allowed: [B, T, S], the positions that each query may attend to.
        positions: [B, T], the index of each new token among its row's tokens.
    """

    def __init__(self, cache, seen, length):
        self.cache, self.next, self.seen, self.length = cache, 0, seen, length
        size = seen.shape[1]
        causal = torch.ones(length, size, dtype=torch.bool, device=seen.device).tril(size - length)
        self.allowed = causal & seen[:, None, :]
        self.positions = (seen.long().cumsum(-1) - 1).clamp(min=0)[:, size - length :]

    def extend(self, first, second=None):
        """Adds new positions to the cache. Returns what it then holds of the two tensors."""
        if self.cache is None:
            return first, second
        while len(self.cache.layers) <= self.next:
            self.cache.layers.append(DynamicLayer())
        self.next += 1
        return self.cache.update(first, first[..., :0] if second is None else second, self.next - 1)


class Norm(nn.Module):
    """Layer or RMS normalisation of the last axis, computed in float32."""

    def __init__(self, config, size, kind=None):
        super().__init__()
        self.kind, self.epsilon = kind or config.norm, config.norm_epsilon
        self.weight = nn.Parameter(torch.ones(size))
        has_bias = self.kind == "layernorm" and config.norm_bias
        self.bias = nn.Parameter(torch.zeros(size)) if has_bias else None

    def forward(self, x):
        y, weight = x.float(), self.weight.float()
        if self.kind == "rmsnorm":
            return (rms_normalised(y, self.epsilon) * weight).to(x.dtype)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(y, y.shape[-1:], weight, bias, self.epsilon).to(x.dtype)


def rms_normalised(x, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def rotate(x, positions, theta):
    """Rotary position embedding of [B, N, T, H]: rotates the pair (i, i + H/2) by position · theta^(-2i/H) radians."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x.float().split(half, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)


class Convolution(nn.Module):
    """Adds to x a causal depthwise convolution of x. Padding counts as 0."""

    def __init__(self, config):
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(config.convolution, config.hidden_size))

    def forward(self, x, context):
        past = context.extend(x[:, None])[0][:, 0] * context.seen[..., None]
        span, length = len(self.taps), x.shape[1]
        padded = F.pad(past.float(), (0, 0, span - 1, 0))
        first = padded.shape[1] - length  # of the unshifted new positions
        y = x.float() * (1 + self.taps[0].float())
        for back in range(1, span):
            y = y + self.taps[back].float() * padded[:, first - back : first - back + length]
        return y.to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.query = nn.Linear(width, heads * config.head_dim, bias=config.qkv_bias)
        self.key, self.value = (nn.Linear(width, groups * config.head_dim, bias=config.qkv_bias) for _ in range(2))
        self.out = nn.Linear(heads * config.head_dim, width, bias=config.use_bias)
        if config.qk_norm:
            self.query_norm, self.key_norm = Norm(config, config.head_dim), Norm(config, config.head_dim)
        if config.head_gate:
            self.gate = nn.Linear(width, heads, bias=config.use_bias)

    def forward(self, x, context):
        config, (batch, length, _) = self.config, x.shape
        q, k, v = (
            layer(x).view(batch, length, -1, config.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if config.positions == "rope":
            q, k = (rotate(y, context.positions, config.rope_theta) for y in (q, k))
        k, v = context.extend(k, v)
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
        allowed = context.allowed | ~context.allowed.any(-1, keepdim=True)  # padding sees everything, to avoid NaN
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
        if config.head_gate:
            y = y * self.gate(x).sigmoid().transpose(1, 2)[..., None]
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """Two dense layers with an activation between them; SwiGLU has a third, the gate."""

    def __init__(self, config):
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        if self.activation == "swiglu":
            self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)

    def forward(self, x, context):
        if self.activation == "swiglu":
            return self.down(self.up(x) * F.silu(self.gate(x)))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each in a residual branch."""

    def __init__(self, config):
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.attention_norm, self.feed_forward_norm = (Norm(config, config.hidden_size) for _ in range(2))
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_convolution, self.feed_forward_convolution = (
            Convolution(config) if config.convolution else None for _ in range(2)
        )

    def forward(self, x, context):
        for name in ("attention", "feed_forward"):
            function, norm, convolution = (getattr(self, name + part) for part in ("", "_norm", "_convolution"))
            inner = norm(x) if self.pre else x
            inner = inner if convolution is None else convolution(inner, context)
            x = x + function(inner, context)
            x = x if self.pre else norm(x)
        return x


class Pointer(nn.Module):
    """The pointer sentinel mixture (Merity et al. 2016): attention that copies tokens of the context.

    A softmax over the context's tokens and a sentinel divides the next token's probability; the sentinel's part is
    distributed by the output layer. The key of a token is computed from its own hidden state and the one before.
    """

    def __init__(self, config):
        super().__init__()
        width, size = config.hidden_size, config.pointer
        self.query = nn.Linear(width, size, bias=config.use_bias)
        self.key = nn.Linear(2 * width, size, bias=config.use_bias)
        self.query_norm, self.key_norm = Norm(config, size, "rmsnorm"), Norm(config, size, "rmsnorm")
        self.sentinel = nn.Linear(width, 1, bias=False)
        self.sentinel_bias = nn.Parameter(torch.full((1,), math.sqrt(size)))

    def forward(self, logits, hidden, tokens, context, kept):
        """The logits of the mixture at the positions `kept`, given those of the output layer there."""
        # Ids as float32 are exact, and a cache may hold them.
        states, ids = (y[:, 0] for y in context.extend(hidden[:, None], tokens[:, None, :, None].float()))
        size, length = states.shape[1], hidden.shape[1]
        before = F.pad(states * context.seen[..., None], (0, 0, 1, 0))[:, size - length : size]
        key = self.key_norm(self.key(torch.cat([before, hidden], dim=-1)))
        keys = context.extend(key[:, None])[0][:, 0]
        query = self.query_norm(self.query(hidden[:, kept]))
        scores = query.float() @ keys.float().mT / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~context.allowed[:, kept], NOTHING)
        sentinel = self.sentinel(hidden[:, kept]).float() + self.sentinel_bias.float()
        logs = torch.cat([scores, sentinel], dim=-1).log_softmax(-1)
        context_ids = ids[..., 0].long()[:, None].expand(-1, logs.shape[1], -1)
        copied = torch.zeros_like(logits).scatter_add(-1, context_ids, logs[..., :-1].exp())
        least = torch.finfo(copied.dtype).tiny
        log_copied = copied.clamp(min=least).log().masked_fill(copied < least, NOTHING)
        return torch.logaddexp(logits + logs[..., -1:], log_copied + logits.logsumexp(-1, keepdim=True))


class MiniGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Maps token ids to float32 logits over the next token."""

    config_class = MiniGPTConfig
    _no_split_modules = ["Block"]  # noqa: RUF012 as Transformers has it
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_norm = Norm(config, width) if config.norm_position == "pre" else nn.Identity()
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(width, config.vocab_size, bias=config.output_bias)
        elif config.output_bias:
            self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.pointer:
            self.pointer = Pointer(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embedding

    def set_input_embeddings(self, value):
        self.token_embedding = value

    def get_output_embeddings(self):
        return getattr(self, "lm_head", None)

    def forward(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, T, V]. `labels` [B, T] are the same tokens, which the loss shifts by one, and -100 for none."""
        config, cache = self.config, cache if cache is not None else past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        past = cache.get_seq_length() if cache is not None else 0
        if attention_mask is None:
            attention_mask = F.pad(torch.ones_like(input_ids), (past, 0), value=1)
        context = Context(cache, attention_mask.bool(), input_ids.shape[1])

        x = self.token_embedding(input_ids)
        if config.positions == "learned":
            x = x + self.position_embedding(context.positions)
        if config.embedding_norm:
            x = rms_normalised(x.float(), config.norm_epsilon).to(x.dtype)
        states = [x]
        for block in list(self.blocks) * config.repeats:
            x = block(x, context)
            states.append(x)
        states[-1] = hidden = self.final_norm(x)

        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(hidden[:, kept])
        if config.pointer:
            logits = self.pointer(logits, hidden, input_ids, context, kept)
        loss = None if labels is None else self.loss_function(logits, labels, config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=tuple(states) if output_hidden_states else None, **{CACHE: cache}
        )

    def output(self, hidden):
        """The output layer alone."""
        if self.config.tie_word_embeddings:
            logits = F.linear(hidden, self.token_embedding.weight, getattr(self, "output_bias", None)).float()
        else:
            logits = self.lm_head(hidden).float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
