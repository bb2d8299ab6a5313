"""`python -m minigpt_jax`, which is how launch.sh starts the command line."""

import sys

from minigpt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
