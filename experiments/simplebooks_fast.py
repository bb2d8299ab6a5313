"""Where the reference ends, in minutes on a CPU: a small model, few tokens, everything that learns fast.

./launch.sh experiments/simplebooks_fast.py --data.archive simplebooks.zip

It is `simplebooks_best.py` with a smaller model and batch, on the heads of the long lines alone and for little more
than half an epoch of the 20,443 of its measurements: perplexity 78.3 after 120 s on two cores, all included, where
KerasHub's five epochs end at 82.0 after 35 minutes (73.9 after 150 s with `--train.steps 900`; without the pointer 82.4
after 161 s, with 1,000). A CPU without AMX and AVX-512 BF16 (`lscpu`) is faster with `--model.dtype auto`, which is
float32. `experiments/compare_kerashub.py` measures how long either takes, from the archive with nothing cached.
"""

from minigpt_jax import Experiment, ModelConfig, OptimizerConfig, TrainConfig

experiment = Experiment(
    name="simplebooks_fast",
    model=ModelConfig(
        num_layers=2,
        width=160,
        num_heads=4,
        feed_forward=640,
        activation="relu2",
        norm="rmsnorm",
        norm_position="pre",
        positions="rope",
        use_bias=False,
        tied_embeddings=True,
        qk_norm=True,
        embedding_norm=True,
        zero_init=True,
        convolution=4,
        head_gate=True,
        pointer=64,
        dtype="bfloat16",
    ),
    optimizer=OptimizerConfig(
        name="normuon", learning_rate=1.6e-2, muon_learning_rate=2e-2, schedule="linear", warmup_steps=50, b2=0.95
    ),
    train=TrainConfig(batch_size=16, steps=700),
)
