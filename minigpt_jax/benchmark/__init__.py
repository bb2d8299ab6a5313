"""Other implementations with the same weights, and timing in turns, for benchmarks and for tests of equality.

`kerashub` and `huggingface` need these libraries (the extra `compare`); the rest of the package does
not. The benchmarks themselves are files in `experiments/`.
"""
