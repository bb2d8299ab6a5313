"""The tutorial's mini-GPT on SimpleBooks-92: its corpus, vocabulary, model, optimiser and objective, for 5 epochs.

./launch.sh experiments/simplebooks.py
./launch.sh experiments/simplebooks.py --data.archive simplebooks.zip    # an archive that you have

One thing differs from the tutorial: every epoch shuffles examples, where the tutorial shuffles whole batches of lines
that follow one another. Expected: 2,445 steps an epoch; the tutorial reports a validation perplexity of 52.0 after the
fifth, and this order does better. On two CPU cores a step takes 1.5 to 2 s; the README has an epoch on a smaller
corpus, measured.
"""

from minigpt_jax import Experiment

experiment = Experiment(name="simplebooks")
