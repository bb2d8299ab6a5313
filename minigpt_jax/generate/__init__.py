"""`load(run_dir)`: a trained model that samples and scores in this process. No TensorFlow here."""

from minigpt_jax.generate.compare import Compared, compare
from minigpt_jax.generate.generation import Generation
from minigpt_jax.generate.language_model import LanguageModel, load

__all__ = ["Compared", "Generation", "LanguageModel", "compare", "load"]
