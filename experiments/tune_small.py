r"""Whether one learning rate serves every width: the sweep of width and rate, in both parametrisations.

    ./launch.sh sweep experiments/tune_small.py model.width=32,64,128,256,512 \
        optimizer.learning_rate=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 --name tune_small_standard
    ./launch.sh sweep experiments/tune_small.py model.width=32,64,128,256,512 \
        optimizer.learning_rate=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 --name tune_small_mup \
        -- --model.parametrization mup

The feed-forward layer is four times as wide as the model, and the four heads grow with it. At the base width of 64 both
parametrisations are the same. Multiplying the rates of the first sweep by width / 64 shows what scaling all rates by
1 / width would do.
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
    name="tune_small",
    data=DataConfig(corpus="stories", stories=4000, layout="packed", sequence_length=64),
    tokenizer=TokenizerConfig(vocabulary_size=512),
    model=ModelConfig(
        num_layers=1,
        width=64,
        num_heads=4,
        feed_forward=None,
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        use_bias=False,
    ),
    optimizer=OptimizerConfig(name="adamw", schedule="linear", warmup_steps=20, b2=0.95, epsilon=1e-8),
    train=TrainConfig(
        batch_size=16, steps=300, evaluate_every=300, checkpoint_every=300, keep_checkpoints=1, trackers=()
    ),
    sample=SampleConfig(max_new_tokens=32),
)
