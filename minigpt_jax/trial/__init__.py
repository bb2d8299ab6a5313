"""The life of one training run, from corpus to checkpoint."""
