"""The best model within the reference's means: no more parameters, no more training tokens, the same vocabulary.

./launch.sh experiments/simplebooks_best.py --data.archive simplebooks.zip
"""

from minigpt_jax.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TrainConfig

experiment = Experiment(
    name="simplebooks_best",
    data=DataConfig(layout="packed", evaluation_layout="lines"),
    model=ModelConfig(
        num_layers=3,
        width=256,
        num_heads=4,
        feed_forward=768,
        activation="relu2",
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        use_bias=False,
        tied_embeddings=True,
        qk_norm=True,
    ),
    optimizer=OptimizerConfig(name="muon", learning_rate=3e-3, schedule="linear", warmup_steps=50, b2=0.95),
    train=TrainConfig(batch_size=64, epochs=1),
)
