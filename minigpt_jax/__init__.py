"""Train small GPT language models from scratch in JAX, and sample from them.

lm = minigpt_jax.load("runs/simplebooks")
lm.generate(["once upon a time"], sampler=minigpt_jax.TopP(p=0.9), max_new_tokens=80, seed=0)[0].text
"""

import lazy_loader

# On first use, so that what only needs the tokenizer or a corpus does not wait for JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
