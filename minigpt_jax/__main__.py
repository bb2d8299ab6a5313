"""`python -m minigpt_jax`, which is how launch.sh starts the command line."""

from minigpt_jax.cli import entry

if __name__ == "__main__":
    entry()
