r"""Whether one learning rate serves every width: the sweep of width and rate, in both parametrisations.

    ./launch.sh sweep experiments/tune_small.py model.width=32,64,128,256,512 \
        optimizer.learning_rate=2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 --name tune_small_standard
    ./launch.sh sweep experiments/tune_small.py model.width=32,64,128,256,512 \
        optimizer.learning_rate=2e-3,4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2 --name tune_small_mup \
        -- --model.parametrization mup

The feed-forward layer is four times as wide as the model, and the four heads grow with it. At the base width of 64 both
parametrisations are the same. Validation losses in nats per token after 300 steps, for one seed, with the best rate of
each width marked (-: not measured):

    standard
    width   2e-3   4e-3   8e-3   1.6e-2  3.2e-2  6.4e-2
       32   3.749  3.074  2.615  2.399   2.379*  2.482
       64   2.785  2.181  1.855  1.785*  2.027   2.645
      128   1.829  1.438  1.293* 1.691   2.332   2.769
      256   1.226  1.100* 1.400  2.164   2.514   3.590
      512   1.047* 1.224  1.673  2.465   -       -

    muP
    width   2e-3   4e-3   8e-3   1.6e-2  3.2e-2  6.4e-2
       32   3.286  2.764  2.502  2.411*  2.701   3.202
      128   2.393  1.714  1.392  1.347*  1.730   2.418
      256   2.130  1.356  1.079* 1.114   1.590   2.267
      512   -      1.281  1.013* 1.043   1.483   -

In the standard parametrisation the best rate halves with each doubling of the width, and the best one of width 32 is
more than 1.4 nats from the best at width 256. In muP the rate that is best at widths 32 to 128, 1.6e-2, loses 0.035
nats at 256 and 0.030 at 512: it serves every width. Scaling all rates of the standard parametrisation by 1 / width, the
diagonal of the first table, finds its best rates too, and does as well: at widths 128, 256 and 512 its losses are
1.293, 1.100 and 1.047, and those of muP at 1.6e-2 are 1.347, 1.114 and 1.043. muP needs no formula for the rate, and
carries over to shapes for which nobody knows one. (At 512 the best standard rate is the lowest one tried.)

A sweep of all five widths takes about 10 minutes on two quiet CPU cores (estimated from its steps; it was measured in
parts, while other work ran).
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
