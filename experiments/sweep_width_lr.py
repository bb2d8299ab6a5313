r"""How the best learning rate depends on the width of a small model.

    ./launch.sh sweep experiments/sweep_width_lr.py model.width=16,32,64,128 \
        optimizer.learning_rate=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 seed=0,1

Finding: the best rate falls as the width grows, from about 3e-2 at widths 16 and 32 to 8e-3 at 128. The table shows the
validation loss in nats per token after 300 steps of AdamW on generated stories, as the mean of two seeds. Their
standard deviation is at most 0.08 for rates up to the best one of each width (*), and at most 0.21 above it.

    width   1e-3   2e-3   4e-3   8e-3   1.6e-2  3.2e-2  6.4e-2
       16   5.106  4.558  3.933  3.458  3.200   3.153*  3.256
       32   4.518  3.805  3.133  2.632  2.395   2.382*  2.949
       64   3.700  2.838  2.126  1.703  1.619*  2.043   2.709
      128   2.607  1.791  1.308  1.173* 1.520   2.179   2.987

From width 32 to 64, and from 64 to 128, the best rate halves, as it would if it were proportional to 1 / width. At
widths 16 and 32 the minimum is too flat to be located by rates that differ by factors of two. A rate that is too high
costs more than one that is too low: twice the best rate loses 0.10 to 0.57 nats, and half of it 0.01 to 0.14. The best
rate for width 32 loses 1.0 nats at width 128. So tune at nearly the width that you will train, or scale the rate by
1 / width. `tune_small.py` is a similar sweep with the maximal-update parametrisation, in which one rate serves every
width.

The 56 trials took 9 minutes on a shared machine with two CPU cores.
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
    train=TrainConfig(
        batch_size=16, steps=300, evaluate_every=300, checkpoint_every=300, keep_checkpoints=1, trackers=()
    ),
    sample=SampleConfig(max_new_tokens=32),
)
