"""The tutorial's mini-GPT on SimpleBooks-92: its corpus, vocabulary size, model, optimiser and objective, for 5 epochs.

    ./launch.sh experiments/simplebooks.py
    ./launch.sh experiments/simplebooks.py --data.archive simplebooks.zip    # an archive that you have

Two things differ: each epoch shuffles the examples, while the tutorial shuffles whole batches of adjacent lines; and
the vocabulary's trainer is that of Hugging Face, which chooses other pieces.

An epoch has 2,445 steps. The tutorial reports a validation perplexity of 52.0 after the fifth epoch; shuffled examples
give a lower one. A step takes 0.6 to 2 s on two CPU cores.
"""

from minigpt_jax import Experiment

experiment = Experiment(name="simplebooks")
