"""More from the reference's means: no more parameters, no more training tokens, the same vocabulary and evaluation.

./launch.sh experiments/simplebooks_best.py --data.archive simplebooks.zip

It trains on all the text, once, where the reference sees the heads of the long lines five times over; evaluation is
the reference's own (the first 128 tokens of each long line), and so is the vocabulary. A vocabulary's rows serve as
both embedding and output layer, and what that frees goes into a third and wider block. Its steps are the reference's
tokens in full windows: take 1,595 for a corpus of 20,443 long lines, where the reference's five epochs are 1,600. The
other choices (pre-norm, RoPE, QK-norm, squared ReLU, Muon, a rate that falls to zero) are those that helped larger
models; their ablation at this size is yet to be run.
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
    train=TrainConfig(batch_size=64, steps=12_180),
)
