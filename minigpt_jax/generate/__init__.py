"""`load(run_dir)`: a trained model that samples and scores in this process. No TensorFlow here.

settings        everything that can be asked of generation, and its one check
methods         samplers from text
requests        prompts and settings as the rows of a program
programs        the compiled programs
texts           what the host does with text
generation      a sampled text
text_stream     a text piece by piece as it grows
language_model  a model with its tokenizer and weights
loading         a run directory's model
one_row         a single prompt as the row of a program
scoring         the log-probability of each token of a text
continuations   log-probabilities of continuations, of any number and lengths
split_text      the text of each token
inspection      what a method chose from at each token
beam_tree       the hypotheses of a beam search
comparison      one prompt under several methods
held_out        prefixes of held-out text, and the human continuations of them
measures        what sampling is judged by: measures of a set of texts
verdict         ways of sampling side by side over many prompts, measured beside human text
"""

import lazy_loader

# On first use, so that the command line's help does not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
