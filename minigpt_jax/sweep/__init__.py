"""Sweeps: trials over the fields of an experiment.

One program trains many trials together, and any number of workers share the trials.

axes      the fields that vary, parsed and checked before anything runs
plan      the definition of a sweep, on which its workers agree
study     the configurations, the worker of each and its results, in a storage that workers share
storage   the journal or the database of a study
group     trains trials that share a program; leases and pruning are hooks of the loop
worker    claims configurations and trains them until none are left
results   writes results.jsonl and results.csv
table     the progress that is shown in the terminal
"""

from minigpt_jax.sweep.plan import Plan as Plan
from minigpt_jax.sweep.plan import make as make
from minigpt_jax.sweep.worker import Outcome as Outcome
from minigpt_jax.sweep.worker import sweep as sweep
