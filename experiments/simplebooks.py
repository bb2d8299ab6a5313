"""The tutorial's mini-GPT on SimpleBooks-92, to the letter: corpus, vocabulary, model, optimiser, objective, 5 epochs.

./launch.sh experiments/simplebooks.py
./launch.sh experiments/simplebooks.py --data.archive simplebooks.zip    # an archive that you have
"""

from minigpt_jax.config import Experiment

experiment = Experiment(name="simplebooks")
