"""The settings of a model that minigpt_jax trained."""

from transformers import PretrainedConfig


class MiniGPTConfig(PretrainedConfig):
    """The settings of a decoder-only transformer. Sizes have the names that other models of Transformers use.

    Args:
        vocab_size: rows of the token embedding.
        max_position_embeddings: the length of the window that the model was trained on.
        num_hidden_layers: decoder blocks.
        hidden_size: width of the residual stream.
        num_attention_heads: query heads.
        num_key_value_heads: key-value heads; query heads share them in groups.
        head_dim: width of a head.
        intermediate_size: hidden width of the feed-forward layer.
        tie_word_embeddings: whether the token embedding is the output layer's matrix.
        activation: relu, gelu (by tanh), gelu_erf, relu2 or swiglu.
        norm: layernorm or rmsnorm.
        norm_position: pre, x = x + f(norm(x)), with a last norm; or post, x = norm(x + f(x)).
        norm_epsilon: added to the variance.
        positions: learned or rope.
        rope_theta: base of the rotary wavelengths.
        use_bias: biases of the dense layers that the next three do not name.
        qkv_bias: biases of queries, keys and values.
        norm_bias: biases of layernorm.
        output_bias: bias of the output layer.
        qk_norm: normalise the queries and keys of each head.
        head_gate: scale the output of each head by a sigmoid of the token that attends.
        embedding_norm: normalise the embedding to a root mean square of 1.
        convolution: tokens that a causal convolution before each residual branch spans; 0 for none.
        pointer: width of the queries and keys that copy tokens from the context; 0 for none.
        repeats: passes through the blocks.
        logit_softcap: squash the logits into (-cap, cap) by a tanh; None for no cap.
    """

    model_type = "minigpt"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 as Transformers has it

    def __init__(
        self,
        vocab_size=5000,
        max_position_embeddings=128,
        num_hidden_layers=2,
        hidden_size=256,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=85,
        intermediate_size=128,
        tie_word_embeddings=False,
        activation="relu",
        norm="layernorm",
        norm_position="post",
        norm_epsilon=1e-5,
        positions="learned",
        rope_theta=10_000.0,
        use_bias=True,
        qkv_bias=True,
        norm_bias=True,
        output_bias=True,
        qk_norm=False,
        head_gate=False,
        embedding_norm=False,
        convolution=0,
        pointer=0,
        repeats=1,
        logit_softcap=None,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.num_hidden_layers = num_hidden_layers
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.activation = activation
        self.norm = norm
        self.norm_position = norm_position
        self.norm_epsilon = norm_epsilon
        self.positions = positions
        self.rope_theta = rope_theta
        self.use_bias = use_bias
        self.qkv_bias = qkv_bias
        self.norm_bias = norm_bias
        self.output_bias = output_bias
        self.qk_norm = qk_norm
        self.head_gate = head_gate
        self.embedding_norm = embedding_norm
        self.convolution = convolution
        self.pointer = pointer
        self.repeats = repeats
        self.logit_softcap = logit_softcap
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
