"""What this project is measured against, and how: other implementations with the same weights, timed in turns.

`kerashub` and `huggingface` need those libraries (`pip install minigpt_jax[compare]`), the rest of the package does not
know of them. The benchmarks themselves are files in `experiments/`; tests compare with the same models.
"""
