"""How does the best learning rate move with the width of a small model?

./launch.sh sweep experiments/sweep_width_lr.py model.width=16,32,64,128 \
    optimizer.learning_rate=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 seed=0,1
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
    name="width_lr",
    data=DataConfig(corpus="stories", stories=4000, layout="packed", sequence_length=64),
    tokenizer=TokenizerConfig(vocabulary_size=512),
    model=ModelConfig(
        num_layers=2,
        width=64,
        num_heads=4,
        feed_forward=128,
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        use_bias=False,
    ),
    optimizer=OptimizerConfig(name="adamw", schedule="linear", warmup_steps=20, b2=0.95, epsilon=1e-8),
    train=TrainConfig(batch_size=16, steps=300, evaluate_every=300, checkpoint_every=300, keep=1, tensorboard=False),
    sample=SampleConfig(max_new_tokens=32),
)
