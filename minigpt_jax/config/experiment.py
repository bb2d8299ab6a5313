"""The dataclasses of an experiment. The string under a field is its help text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minigpt_jax.config.options import Alias, accepts_aliases, option

Layout = Literal["lines", "packed", "whole"]
"""How documents are cut into rows."""

PAD_ID, UNK_ID, BOS_ID = 0, 1, 2
RESERVED_PIECES = ("[PAD]", "[UNK]", "[BOS]")
_PIECES, _BYTE_PIECES = 5000, len(RESERVED_PIECES) + 256


@accepts_aliases
@dataclass(frozen=True)
class DataConfig:
    """The corpus, and how its text becomes rows of token ids."""

    corpus: Literal["simplebooks", "stories", "text"] | str = option("simplebooks", code=True)
    """SimpleBooks, generated stories, text files of your own, or a corpus of your own, FILE.py:Name."""
    archive: Path | None = option(None, resumable=True)  # what it holds is fingerprinted, not where it lies
    """A SimpleBooks archive (.zip) on disk instead of the download."""
    simplebooks: Literal["simplebooks-92-raw", "simplebooks-2-raw", "simplebooks-92", "simplebooks-2"] = (
        "simplebooks-92-raw"
    )
    """Which of the archive's four corpora."""
    files: tuple[str, ...] = option((), resumable=True)
    """For text: files, globs or folders of .txt, .jsonl (both also as .gz or .zst), .parquet or .zip, on disk or at an
    address (hf://, s3://, gs://, https://)."""
    document: Literal["line", "file"] = "line"
    """For text: what one document is (a record of .jsonl and a row of .parquet always are one)."""
    separator: str | None = None
    """For text: documents end where this text stands, such as '<|endoftext|>', and not at line ends; \\n in it is a
    line feed, so that '\\n\\n' cuts at blank lines."""
    text_field: str = option("text", aliases=("json_field",))
    """For text: the field of a .jsonl record, or the column of a .parquet file, that holds the text."""
    held_out: float = option(0.02, above=0, below=0.5)
    """For text: the share of documents held out for each of validation and test."""
    stories: int = option(14_000, above=0)
    """For stories: how many tales to generate for training."""
    stories_seed: int = option(0, at_least=0)
    """For stories: the seed of the tales."""
    layout: Layout = option("lines", caches=("store",))
    """lines: the prefix of each long document, padded; packed: all the text, cut into full windows; whole: all the
    text, in windows that hold as many whole documents as fit, padded (a longer document is cut)."""
    evaluation_layout: Layout | None = option(None, caches=("store",))
    """Layout of the validation and test parts; it also decides which documents train the vocabulary; as --data.layout
    by default."""
    anneal_fraction: float = option(0.0, at_least=0, at_most=1, caches=("store",), aliases=("finish",))
    """For the packed layout evaluated as lines: the fraction of steps, the last ones, that train on the prefixes of
    long documents; the other steps train on the text without these prefixes."""
    min_bytes: int = option(512, at_least=0, caches=("tokenizer", "store"))
    """For lines: keep documents of more UTF-8 bytes than this."""
    sequence_length: int = option(128, above=0, caches=("store",))
    """Tokens in a window."""

    def layout_of(self, split: str) -> Layout:
        """How the rows of a split are cut."""
        return self.layout if split == "train" else self.evaluation_layout or self.layout


@accepts_aliases
@dataclass(frozen=True)
class TokenizerConfig:
    """How text is cut into pieces."""

    kind: Literal["wordpiece", "unigram", "bpe", "byte_bpe", "char", "byte", "huggingface"] = option(
        "wordpiece", caches=("tokenizer",)
    )
    """WordPiece; SentencePiece by unigram or byte-pair encoding; byte-level BPE as GPT-2's; the characters of the
    training text; bytes; or a tokenizer.json of your own, which --tokenizer.file alone implies."""
    vocabulary_size: int | None = option(
        None, above=len(RESERVED_PIECES), caches=("tokenizer", "store"), of_tokenizer=True
    )
    """Pieces to train, the reserved ones included, and rows of the embedding and the output layer. By default 5,000,
    and for char, byte and huggingface as many as there are."""
    exact: bool = option(True, caches=("tokenizer",), newer=True)
    """Refuse a text that cannot fill the vocabulary, or has too many characters for it. Otherwise train the pieces that
    it gives, and spell its rarest characters in bytes (SentencePiece only)."""
    lowercase: bool = option(True, caches=("tokenizer",))
    """Fold case (WordPiece only; SentencePiece is lossless)."""
    file: Path | None = option(None, resumable=True, caches=("tokenizer",))  # fingerprinted too
    """A vocabulary of your own: one piece a line, a SentencePiece .model file, or a Hugging Face tokenizer.json."""
    start_id: int | None = option(None, at_least=0, of_tokenizer=True)
    """Id of the token before every text and between the documents of a row; by default the tokenizer's."""

    @property
    def sizes_itself(self) -> bool:
        """Whether there are as many pieces as the tokenizer turns out to have, unless `vocabulary_size` is given."""
        return self.kind in ("char", "byte", "huggingface") or (self.file is not None and self.file.suffix == ".json")

    @property
    def size(self) -> int | None:
        """`vocabulary_size`, or its default, which is None for a tokenizer that `sizes_itself`."""
        return self.vocabulary_size or (None if self.sizes_itself else _PIECES)

    @property
    def rows(self) -> int:
        """Rows of the embedding and the output layer: `size`, or a guess until the tokenizer is known."""
        return self.size or (_BYTE_PIECES if self.kind in ("char", "byte") else _PIECES)


@accepts_aliases
@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; the defaults are the KerasHub tutorial's model."""

    num_layers: int = option(2, above=0)
    """Decoder blocks."""
    width: int = option(256, above=0)
    """Width of the residual stream."""
    embedding_width: int | None = option(None, above=0)
    """Factorise the embedding: its rows and those of the output layer get this width, and two matrices map them to the
    model's width and back. By default rows are as wide as the model."""
    num_heads: int = option(3, above=0)
    """Attention heads."""
    head_width: int | None = option(None, above=0)
    """Width of an attention head; width // num_heads by default."""
    num_kv_heads: int | None = option(None, above=0)
    """Key-value heads (grouped-query attention); as many as query heads by default."""
    feed_forward: int | None = option(128, above=0)
    """Hidden width of the feed-forward layer; None for four times the width."""
    block: Literal["transformer"] | str = option("transformer", code=True)
    """The decoder block: attention and feed-forward, or a Flax module of your own, FILE.py:Name."""
    activation: Literal["relu", "gelu", "gelu_erf", "relu2", "swiglu"] | str = option("relu", code=True)
    """Activation of the feed-forward layer; gelu is GPT-2's tanh form and gelu_erf the exact one; FILE.py:Name is a
    function of your own."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation layer."""
    norm_position: Literal["post", "pre"] = "post"
    """post: x = norm(x + f(x)); pre: x = x + f(norm(x)), with a last norm before the output."""
    norm_epsilon: float = option(1e-5, above=0)
    """Added to the variance."""
    positions: Literal["learned", "rope"] = "learned"
    """Learned absolute positions, or rotary ones."""
    rope_theta: float = option(10_000.0, above=0)
    """Base of the rotary wavelengths."""
    use_bias: bool = True
    """Biases in all dense layers and norms; --model.qkv-bias, --model.norm-bias and --model.output-bias override it."""
    qkv_bias: bool | None = None
    """Biases of queries, keys and values; as use_bias by default."""
    norm_bias: bool | None = None
    """Biases of layernorm; as use_bias by default."""
    output_bias: bool | None = None
    """Bias of the output layer; as use_bias by default."""
    tied_embeddings: bool = False
    """Use the token embedding as the output layer's kernel."""
    qk_norm: bool = False
    """Normalise queries and keys, each head on its own."""
    head_gate: bool = False
    """Scale each head's output by a sigmoid gate, computed from the token that attends."""
    dropout: float = option(0.0, at_least=0, below=1, adjustable=True)
    """Rate of dropout on the embeddings and on each residual branch."""
    zero_init: bool = option(False, adjustable=True)
    """Start every block as the identity: the last matrix of each residual branch is zero."""
    embedding_norm: bool = False
    """Normalise the embedding to a root mean square of 1, with no weights of its own."""
    convolution: int = option(0, at_least=0)
    """Kernel size of a depthwise causal convolution before each residual branch, in tokens; 0 for none."""
    pointer: int = option(0, at_least=0)
    """Width of the queries and keys by which the next token may be copied from the context, beside what the output
    layer gives it (pointer sentinel mixture); 0 for none."""
    repeats: int = option(1, above=0)
    """Passes through the blocks, one after another with the same weights."""
    logit_softcap: float | None = option(None, above=0)
    """Squash the output layer's logits into (-cap, cap) by a tanh."""
    parametrization: Literal["standard", "mup"] = "standard"
    """How initial weights and learning rates depend on the width. mup: such that one learning rate serves all widths
    (maximal-update parametrisation); it supposes that heads and feed-forward layers grow with the width."""
    base_width: int = option(64, above=0)
    """For mup: the width at which it equals the standard parametrisation, and so the width at which learning rates have
    their ordinary meaning."""
    isolate_documents: bool = option(False, adjustable=True)
    """Stop attention at document boundaries (packed and whole layouts)."""
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", adjustable=True)
    """Type of compute; parameters are float32. auto: bfloat16 on accelerators, float32 on CPU, where bfloat16 is faster
    only with AMX or AVX-512 BF16 (lscpu), and only in training: sampling on CPU is always in float32."""
    remat: bool = option(False, resumable=True, adjustable=True)
    """Recompute each block in the backward pass to save memory."""

    @property
    def head_size(self) -> int:
        """The width of an attention head, which `head_width` sets or the model's width gives."""
        return self.head_width or self.width // self.num_heads

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward or 4 * self.width

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def has_bias(self, part: Literal["qkv", "norm", "output"]) -> bool:
        """Whether the layers of this part have biases: by their own field if it is set, or by `use_bias`."""
        chosen: bool | None = getattr(self, f"{part}_bias")
        return self.use_bias if chosen is None else chosen


@accepts_aliases
@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    name: Literal["adam", "adamw", "muon", "normuon", "lion"] | str = option("adam", code=True)
    """adam is Keras's variant. muon updates the matrices of the blocks, the pointer and a factorised embedding's
    projections, and NAdam the rest. normuon also normalises the updates of each neuron. FILE.py:Name is an Optax
    transformation of your own."""
    learning_rate: float = option(1e-3, at_least=0, traced=True)
    """Peak learning rate."""
    muon_learning_rate: float = option(2e-2, at_least=0, traced=True)
    """Peak learning rate of Muon's own matrices."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = option("constant", traced=True)
    """Shape of the learning rate after warm-up; wsd: warm-up, stable, then linear decay."""
    warmup_steps: int = option(0, at_least=0, traced=True)
    """Steps of linear warm-up."""
    decay_fraction: float = option(0.2, at_least=0, at_most=1, traced=True)
    """wsd: the fraction of all steps that the decay takes."""
    final_fraction: float = option(0.0, at_least=0, at_most=1, traced=True)
    """Learning rate at the end, as a fraction of the peak."""
    b1: float = option(0.9, at_least=0, below=1, traced=True)
    """Decay of the first moment."""
    b2: float = option(0.999, at_least=0, below=1, traced=True)
    """Decay of the second moment."""
    epsilon: float = option(1e-7, above=0, traced=True)
    """Added to the denominator."""
    weight_decay: float = option(0.0, at_least=0, traced=True)
    """Decoupled weight decay on matrices (adamw, lion) or on Muon's own (muon, normuon)."""
    clip_norm: float | None = option(None, above=0, traced=True)
    """Clip gradients to this global norm."""
    ema_decay: float | None = option(None, at_least=0, below=1)
    """Keep an exponential moving average of the weights; evaluation and sampling use it."""


@accepts_aliases
@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and what is recorded on the way."""

    batch_size: int = option(64, above=0)
    """Rows in a global batch."""
    epochs: int = option(5, above=0, resumable=True)
    """Passes over the training rows."""
    steps: int | None = option(None, above=0, resumable=True)
    """Stop after this many steps instead of after the epochs. This is also the schedule's horizon."""
    accumulate: int = option(1, above=0)
    """Number of micro-batches whose gradients are summed in one step."""
    steps_per_execution: int | None = option(None, above=0, resumable=True, aliases=("steps_per_dispatch",))
    """Steps run by one call of the compiled program; by default one on CPU and several on accelerators."""
    log_every: int = option(20, above=0, resumable=True)
    """Steps between training lines of metrics.jsonl."""
    evaluate_every: int | None = option(None, above=0, resumable=True)
    """Steps between evaluations; each epoch by default."""
    checkpoint_every: int | None = option(None, above=0, resumable=True)
    """Steps between checkpoints; each epoch by default."""
    patience: int | None = option(None, above=0, resumable=True)
    """End after this many evaluations in a row without a lower validation loss, and keep the checkpoint of the lowest;
    never by default. The trials of a sweep always make all of their steps."""
    keep_checkpoints: int = option(2, above=0, resumable=True, aliases=("keep",))
    """Latest checkpoints to keep, besides the best."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"] | str, ...] = option(
        ("tensorboard",),
        resumable=True,
        code=True,
        aliases=(Alias("tensorboard", bool, lambda on: ("tensorboard",) if on else ()),),
    )
    """Where the figures of metrics.jsonl are also recorded: tensorboard, wandb (Weights & Biases), trackio or a tracker
    of your own, FILE.py:Name. --train.trackers without a value turns all off."""


@accepts_aliases
@dataclass(frozen=True)
class SampleConfig:
    """The text sampled at each evaluation, by top-k as in the tutorial's callback."""

    prompts: tuple[str, ...] = option(("",), resumable=True)
    """Texts to continue. An empty one starts from the start token alone."""
    k: int = option(10, above=0, resumable=True)
    """Number of most probable tokens to draw from."""
    temperature: float = option(1.0, at_least=0, resumable=True)
    """Divides the logits."""
    max_new_tokens: int | None = option(None, above=0, resumable=True)
    """Tokens to generate; up to the end of the window by default."""


@dataclass(frozen=True)
class Experiment:
    """Everything a run depends on."""

    name: str
    """Names the run directory, runs/NAME."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    seed: int = option(0, at_least=0, below=2**63)
    """Seed of the weights, the data order, dropout and the samples."""
