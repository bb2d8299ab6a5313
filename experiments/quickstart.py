"""The whole way in about two minutes on two CPU cores: generated tales, tokenizer, training, evaluation, samples.

    ./launch.sh experiments/quickstart.py

The corpus is drawn from a known grammar, so the evaluation also tells its entropy, the floor that no model beats in
expectation.
"""

from minigpt_jax.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)

experiment = Experiment(
    name="quickstart",
    data=DataConfig(corpus="stories", layout="packed", sequence_length=128),
    tokenizer=TokenizerConfig(vocabulary_size=1677),
    model=ModelConfig(
        num_layers=3,
        width=128,
        num_heads=4,
        feed_forward=384,
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        activation="relu2",
        use_bias=False,
        tied_embeddings=True,
        qk_norm=True,
    ),
    optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, schedule="linear", warmup_steps=20, b2=0.95),
    train=TrainConfig(batch_size=32, steps=330, log_every=10, evaluate_every=110),
    sample=SampleConfig(prompts=("", "once upon a time , there was a brave")),
)
