"""The optimiser, the pure train and evaluation steps, and the loop that drives them."""
