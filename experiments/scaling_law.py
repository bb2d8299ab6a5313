r"""Does a scaling law find the entropy of a text whose entropy is known?

    ./launch.sh sweep experiments/scaling_law.py model.width=16,24,32,48,64,96,128 \
        train.steps=125,250,500,1000,2000 optimizer.learning_rate=3e-3,6e-3,1.2e-2
    ./launch.sh report runs/sweeps/scaling_law --fit

A scaling law L(N, D) = E + A / N^alpha + B / D^beta has an irreducible loss E, which nobody knows for real text. The
entropy of the generated tales is known. The sweep trains models of several widths for several numbers of steps, each at
several learning rates, of which the law takes the best; the report fits the law. A row holds a whole tale, so that no
token lacks the part of its tale that tells what comes next: E should be the entropy, 0.4255 nats per token.
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
    name="scaling_law",
    data=DataConfig(corpus="stories", stories=60_000, layout="whole", sequence_length=128),
    tokenizer=TokenizerConfig(vocabulary_size=1400),
    model=ModelConfig(
        num_layers=2,
        width=64,
        num_heads=4,
        feed_forward=None,
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        activation="relu2",
        use_bias=False,
        tied_embeddings=True,
        qk_norm=True,
        zero_init=True,
        embedding_norm=True,
        convolution=4,
    ),
    optimizer=OptimizerConfig(name="normuon", schedule="linear", warmup_steps=20, b2=0.95),
    train=TrainConfig(batch_size=8, evaluate_every=100_000, checkpoint_every=100_000, keep_checkpoints=1, trackers=()),
    sample=SampleConfig(max_new_tokens=32),
)
