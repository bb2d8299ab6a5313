"""The final perplexity of the tutorial's model, in minutes on a CPU.

    ./launch.sh experiments/simplebooks_fast.py --data.archive books.zip

This is `simplebooks_best.py` with a smaller model and batch, trained on about half of the prefixes of long lines, once.
The number of steps is for a corpus of 20,443 long lines, 55 MB of public-domain books. There, on two cores, it reaches
a validation perplexity of 78.3 in 120 s, where KerasHub's five epochs reach 82.0 in 35 minutes. With `--train.steps
900` it reaches 73.9 in 150 s. Without the pointer it needed 1,000 steps and 161 s to reach 82.4. These times include
everything that a run does. `experiments/compare_kerashub.py` measures both from an empty cache.

On a CPU without AMX and AVX-512 BF16 (`lscpu`), `--model.dtype auto` (float32) is faster.
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
