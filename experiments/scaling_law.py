r"""Does a scaling law find the entropy of a text whose entropy is known?

    ./launch.sh sweep experiments/scaling_law.py model.width=16,24,40,64,96 train.steps=125,250,500,1000 \
        optimizer.learning_rate=6e-3,1.2e-2,2.4e-2
    ./launch.sh report runs/sweeps/scaling_law --fit

A scaling law L(N, D) = E + A / N^alpha + B / D^beta has an irreducible loss E, which nobody knows for real text. The
entropy of the generated tales is known: 0.425 nats per token. The sweep trains models of five sizes for four numbers of
steps, each at three learning rates for what Adam updates (Muon's own stays), of which the law takes the best. A row
holds a whole tale, so that no token lacks the part of its tale that tells what comes next.

It does not. Loss of the best rate by parameters N and training tokens D, in nats per token:

    N \ D      99k    199k   397k   794k
     28,896   2.845  2.002  1.467  1.138
     47,952   2.301  1.428  0.968  0.794
     95,280   1.713  0.985  0.766  0.698
    189,312   1.292  0.832  0.724  0.680
    357,696   1.073  0.780  0.702  0.664

    form                                           E  95% interval  error of L  beyond
    E + A / N^alpha + B / D^beta               0.607    0 - 0.67          15%     67%
    A / N^alpha + B / D^beta                   0                          18%     67%
    E + ((A / N^alpha)^(1/beta) + B / D)^beta  0.652  0.59 - 0.69        6.7%    8.5%
    E + (A / N^alpha + B / D^beta)^gamma       0.650  0.58 - 0.66        5.5%     17%

("Beyond" is the error for the quarter of the models with the most compute, by the law that fits the others.)

Losses fall fast and then flatten near 0.67, where a model knows the grammar but does not yet copy names. The forms in
which size and tokens act together, such as that of Kaplan et al. (2020), fit far better than the sum of Hoffmann et al.
(2022), but they take this plateau for the floor: the truth lies below their intervals. The sum's interval holds the
truth only because it is so wide. Fitted to the models with a loss above 0.72 alone, its E is 0; only models on the
plateau give an E, and it is the plateau's. A pointer, which copies, gets below: of two models of about 580,000
parameters after 953,000 tokens, the quickstart's ends at 0.472, and the same without its pointer and convolutions at
0.662. So E is the floor of what models of this kind and size have learned so far, not the entropy of the text; to see
that, one has to look below the plateau.

The best rate is the highest one tried for 17 of the 20 models (rates hardly differ on the plateau), so that small
models after few steps could do better than this table says, which bends the law at its other end. One seed. The 60
trials took 27 minutes on a shared machine with two CPU cores, while other work ran.
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
