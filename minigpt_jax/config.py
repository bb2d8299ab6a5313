"""An experiment: the frozen dataclasses that name every choice from corpus to checkpoint.

Every field is a flag of the command line (`--model.num-layers 4`) and an axis of a sweep (`model.num_layers=2,4`);
the string under a field is its help text. `validate` refuses what cannot work before any compute is spent.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cattrs

from minigpt_jax.errors import UserError

PAD_ID, UNK_ID, BOS_ID = 0, 1, 2
RESERVED_PIECES = ("[PAD]", "[UNK]", "[BOS]")


@dataclass(frozen=True)
class DataConfig:
    """The corpus, and how its text becomes rows of token ids."""

    corpus: Literal["simplebooks", "stories", "text"] = "simplebooks"
    """SimpleBooks, generated stories, or text files of your own."""
    archive: Path | None = None
    """A SimpleBooks archive (.zip) on disk instead of the download."""
    simplebooks: Literal["simplebooks-92-raw", "simplebooks-2-raw", "simplebooks-92", "simplebooks-2"] = (
        "simplebooks-92-raw"
    )
    """Which of the archive's four corpora."""
    files: tuple[str, ...] = ()
    """For text: files, globs or folders of .txt, .gz, .zip or .jsonl."""
    document: Literal["line", "file"] = "line"
    """For text: what one document is (a .jsonl record is always one)."""
    json_field: str = "text"
    """For text: the field of a .jsonl record that holds the text."""
    held_out: float = 0.02
    """For text: the share of documents held out for each of validation and test."""
    stories: int = 14_000
    """For stories: how many tales to generate for training."""
    stories_seed: int = 0
    """For stories: the seed of the tales."""
    layout: Literal["lines", "packed"] = "lines"
    """lines: the head of each long document, padded; packed: all the text, cut into full windows."""
    evaluation_layout: Literal["lines", "packed"] | None = None
    """Layout of the validation and test parts, whose documents the vocabulary is made for too; as --data.layout by
    default."""
    finish: float = 0.0
    """For packed, evaluated as lines: train the last share of the steps on the heads of the long documents, and the
    others on what these leave of the text."""
    min_bytes: int = 512
    """For lines: keep documents of more UTF-8 bytes than this."""
    sequence_length: int = 128
    """Tokens in a window."""

    def layout_of(self, split: str) -> Literal["lines", "packed"]:
        """How the rows of a split are cut."""
        return self.layout if split == "train" else self.evaluation_layout or self.layout


@dataclass(frozen=True)
class TokenizerConfig:
    """How text is cut into pieces."""

    kind: Literal["wordpiece", "unigram", "bpe"] = "wordpiece"
    """WordPiece, or SentencePiece by unigram or byte-pair encoding."""
    vocabulary_size: int = 5000
    """Pieces to train, and rows of the embedding and the output layer."""
    lowercase: bool = True
    """Fold case (WordPiece only; SentencePiece is lossless)."""
    file: Path | None = None
    """A vocabulary of your own: one piece a line, or a SentencePiece .model file."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; the defaults are the KerasHub tutorial's model."""

    num_layers: int = 2
    """Decoder blocks."""
    width: int = 256
    """Width of the residual stream."""
    num_heads: int = 3
    """Attention heads; each is width // num_heads wide."""
    num_kv_heads: int | None = None
    """Key-value heads (grouped-query attention); as many as query heads by default."""
    feed_forward: int = 128
    """Hidden width of the feed-forward layer."""
    activation: Literal["relu", "gelu", "relu2", "swiglu"] = "relu"
    """Activation of the feed-forward layer; gelu is GPT-2's tanh form."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation layer."""
    norm_position: Literal["post", "pre"] = "post"
    """post: x = norm(x + f(x)); pre: x = x + f(norm(x)), with a last norm before the output."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    positions: Literal["learned", "rope"] = "learned"
    """Learned absolute positions, or rotary ones."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    use_bias: bool = True
    """Biases in all dense layers and norms."""
    tied_embeddings: bool = False
    """Use the token embedding as the output layer's kernel."""
    qk_norm: bool = False
    """Normalise queries and keys, each head on its own."""
    head_gate: bool = False
    """Scale each head's output by a sigmoid of the token that attends."""
    dropout: float = 0.0
    """Rate of dropout on the embeddings and on each residual branch."""
    zero_init: bool = False
    """Start every block as the identity: the last matrix of each residual branch is zero."""
    embedding_norm: bool = False
    """Normalise the embedding to a root mean square of 1, with no weights of its own."""
    convolution: int = 0
    """Tokens that a causal convolution before each residual branch spans, features apart; 0 for none."""
    pointer: int = 0
    """Width of the queries and keys by which the next token may be copied from the context, beside what the output
    layer gives it (pointer sentinel mixture); 0 for none."""
    repeats: int = 1
    """Passes through the blocks, one after another with the same weights."""
    logit_softcap: float | None = None
    """Squash the output layer's logits into (-cap, cap) by a tanh."""
    isolate_documents: bool = False
    """Stop attention at document boundaries (packed layout)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of compute; parameters are float32. auto: bfloat16 on accelerators, float32 on CPU, where bfloat16 is faster
    only with AMX or AVX-512 BF16 (lscpu)."""
    remat: bool = False
    """Recompute each block in the backward pass to save memory."""

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule."""

    name: Literal["adam", "adamw", "muon", "normuon", "lion"] = "adam"
    """adam is Keras's form of it; muon takes the matrices of blocks and pointer and leaves the rest to NAdam; normuon
    evens out how far each neuron's weights move."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    muon_learning_rate: float = 2e-2
    """Peak learning rate of Muon's own matrices."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """Shape of the learning rate after warm-up; wsd: warm-up, stable, then linear decay."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_fraction: float = 0.2
    """wsd: the share of all steps that the decay takes."""
    final_fraction: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-7
    """Added to the denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices (adamw, lion) or on Muon's own (muon, normuon)."""
    clip_norm: float | None = None
    """Clip gradients to this global norm."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights; evaluation and sampling use it."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and what is recorded on the way."""

    batch_size: int = 64
    """Rows in a global batch."""
    epochs: int = 5
    """Passes over the training rows."""
    steps: int | None = None
    """Stop after this many steps, whatever the epochs; the schedule's horizon too."""
    accumulate: int = 1
    """Micro-batches that one step's gradient is summed over."""
    steps_per_dispatch: int | None = None
    """Steps run by one call of the compiled program; by default one on CPU and several on accelerators."""
    log_every: int = 20
    """Steps between training lines of metrics.jsonl."""
    evaluate_every: int | None = None
    """Steps between evaluations; each epoch by default."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; each epoch by default."""
    keep: int = 2
    """Latest checkpoints to keep, besides the best."""
    patience: int | None = None
    """End after this many evaluations in a row without a lower validation loss; never by default."""
    tensorboard: bool = True
    """Write TensorBoard summaries."""


@dataclass(frozen=True)
class SampleConfig:
    """The text sampled at each evaluation, by top-k as in the tutorial's callback."""

    prompts: tuple[str, ...] = ("",)
    """Texts to go on from; an empty one starts from [BOS]."""
    k: int = 10
    """The most probable tokens that are drawn from."""
    temperature: float = 1.0
    """Divides the logits."""
    max_new_tokens: int | None = None
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
    seed: int = 0
    """Seed of the weights, the data order, dropout and the samples."""


def validate(experiment: Experiment) -> None:
    """Raises UserError, naming the flag, for the first choice that cannot work."""
    data, tokenizer, model = experiment.data, experiment.tokenizer, experiment.model
    optimizer, train = experiment.optimizer, experiment.train
    positive = {
        "data.sequence_length": data.sequence_length,
        "data.stories": data.stories,
        "model.num_layers": model.num_layers,
        "model.repeats": model.repeats,
        "model.width": model.width,
        "model.num_heads": model.num_heads,
        "model.num_kv_heads": model.kv_heads,
        "model.feed_forward": model.feed_forward,
        "model.norm_epsilon": model.norm_epsilon,
        "model.rope_theta": model.rope_theta,
        "optimizer.epsilon": optimizer.epsilon,
        "train.batch_size": train.batch_size,
        "train.epochs": train.epochs,
        "train.accumulate": train.accumulate,
        "train.log_every": train.log_every,
        "train.keep": train.keep,
        "sample.k": experiment.sample.k,
    }
    optional = {
        "model.logit_softcap": model.logit_softcap,
        "optimizer.clip_norm": optimizer.clip_norm,
        "train.steps": train.steps,
        "train.steps_per_dispatch": train.steps_per_dispatch,
        "train.evaluate_every": train.evaluate_every,
        "train.checkpoint_every": train.checkpoint_every,
        "train.patience": train.patience,
        "sample.max_new_tokens": experiment.sample.max_new_tokens,
    }
    positive |= {name: value for name, value in optional.items() if value is not None}
    for name, value in positive.items():
        _require(value > 0, name, value, "must be above 0")
    not_negative = {
        "data.min_bytes": data.min_bytes,
        "model.convolution": model.convolution,
        "model.pointer": model.pointer,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.muon_learning_rate": optimizer.muon_learning_rate,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "optimizer.weight_decay": optimizer.weight_decay,
        "sample.temperature": experiment.sample.temperature,
        "seed": experiment.seed,
    }
    for name, value in not_negative.items():
        _require(value >= 0, name, value, "must not be below 0")
    fractions = {
        "model.dropout": model.dropout,
        "optimizer.b1": optimizer.b1,
        "optimizer.b2": optimizer.b2,
        "optimizer.ema_decay": optimizer.ema_decay or 0.0,
    }
    for name, value in fractions.items():
        _require(0 <= value < 1, name, value, "must be at least 0 and below 1")
    for name, value in {
        "optimizer.decay_fraction": optimizer.decay_fraction,
        "optimizer.final_fraction": optimizer.final_fraction,
        "data.finish": data.finish,
    }.items():
        _require(0 <= value <= 1, name, value, "must lie between 0 and 1")
    _require(experiment.seed < 2**63, "seed", experiment.seed, "must be below 2^63")
    _require(0 < data.held_out < 0.5, "data.held_out", data.held_out, "must lie between 0 and 0.5")
    _require(
        not data.finish or (data.layout == "packed" and data.evaluation_layout == "lines"),
        "data.finish",
        data.finish,
        "needs --data.layout packed and --data.evaluation-layout lines",
    )
    _require(
        tokenizer.vocabulary_size > len(RESERVED_PIECES),
        "tokenizer.vocabulary_size",
        tokenizer.vocabulary_size,
        f"must be above {len(RESERVED_PIECES)}, the number of reserved pieces",
    )
    _require(
        model.width >= model.num_heads,
        "model.num_heads",
        model.num_heads,
        f"must be at most --model.width {model.width}, so that a head is at least 1 wide",
    )
    _require(
        model.num_heads % model.kv_heads == 0,
        "model.num_kv_heads",
        model.kv_heads,
        f"must divide --model.num-heads {model.num_heads}",
    )
    _require(
        model.positions != "rope" or model.head_width % 2 == 0,
        "model.positions",
        "rope",
        f"needs heads of an even width, and {model.width} // {model.num_heads} = {model.head_width} is odd; "
        "choose another --model.width or --model.num-heads",
    )
    _require(
        train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"must divide --train.batch-size {train.batch_size}",
    )
    _require(
        optimizer.weight_decay == 0 or optimizer.name != "adam",
        "optimizer.weight_decay",
        optimizer.weight_decay,
        "adam has none; take --optimizer.name adamw",
    )
    _require(
        not model.isolate_documents or data.layout == "packed",
        "model.isolate_documents",
        True,
        "in the lines layout a row is one document; add --model.no-isolate-documents, or take --data.layout packed",
    )
    _require(
        data.corpus == "simplebooks" or data.archive is None,
        "data.archive",
        data.archive,
        f"is a SimpleBooks archive, but --data.corpus is {data.corpus}; drop one of the two",
    )
    _require(
        data.corpus != "text" or bool(data.files),
        "data.corpus",
        "text",
        "needs --data.files, the files, globs or folders to read",
    )
    _require(
        data.corpus == "text" or not data.files,
        "data.files",
        " ".join(data.files),
        f"are text files, but --data.corpus is {data.corpus}; add --data.corpus text",
    )


def _require(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"--{flag_name(name)} {value}: {rule}")


def flag_name(name: str) -> str:
    """The spelling of a field on the command line, without the two dashes in front."""
    return name.replace("_", "-")


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook(Path, str)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values."""
    return _converter.unstructure(experiment)


def from_json(value: dict[str, Any]) -> Experiment:
    """The inverse of `to_json`; fields that an older file lacks take their defaults.

    Raises UserError where a field is unknown or has a value that it cannot take.
    """
    try:
        return _converter.structure(value, Experiment)
    except Exception as error:
        reasons = "; ".join(cattrs.transform_error(error))
        raise UserError(f"the experiment in config.json cannot be read: {reasons}") from error


def dumps(value: Any) -> str:
    """JSON as the project writes it: indented, readable, with a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Field values by dotted name, `model.num_layers` for one."""
    flat: dict[str, Any] = {}
    for name, value in to_json(experiment).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in value.items()}
        else:
            flat[name] = value
    return flat
