"""A small model of your own text: a book, a folder of notes, a dump of records.

    ./launch.sh experiments/text.py --data.files book.txt
    ./launch.sh experiments/text.py --data.files 'books/*.txt' --tokenizer.vocabulary-size 8000 --run-dir runs/books

All of the text is used (packed layout), by a lossless tokenizer that is trained on it. The settings suit 200 KB to a
few MB. A model soon memorises so little text, so this one is small, has dropout, and stops when the validation loss has
not fallen for three evaluations. Sample from the checkpoint with the lowest validation loss:

    ./launch.sh sample runs/text --step best --prompt "It was"

For more text, give a larger vocabulary (`--tokenizer.vocabulary-size 5000`), more layers and less dropout. If the text
cannot fill the vocabulary, the vocabulary becomes smaller. If the text has too many characters for it, as Chinese has
for 1,000 pieces, the rarest characters are encoded as bytes.
"""

from minigpt_jax import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)

experiment = Experiment(
    name="text",
    data=DataConfig(corpus="text", layout="packed", sequence_length=128, held_out=0.05),
    tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=1000, exact=False),
    model=ModelConfig(
        num_layers=3,
        width=128,
        num_heads=4,
        feed_forward=512,
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        activation="relu2",
        use_bias=False,
        tied_embeddings=True,
        qk_norm=True,
        embedding_norm=True,
        zero_init=True,
        dropout=0.1,
    ),
    optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, muon_learning_rate=1e-2, warmup_steps=20, b2=0.95),
    train=TrainConfig(batch_size=16, epochs=30, patience=3),
    sample=SampleConfig(prompts=("",)),
)
