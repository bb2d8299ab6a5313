"""Sweeps: trials over the fields of an experiment, many of them trained in one program, by any number of workers.

axes      what varies, read and checked before anything runs
plan      what a sweep is; its workers agree on it
study     what to try next, who is at it and what came of it, in a storage that workers share
storage   the journal or the database of a study
group     trials that share a program, trained together; leases and pruning are hooks of the loop
worker    takes configurations, trains them, and goes on until there are none
results   results.jsonl and results.csv
table     what a person sees
"""

from minigpt_jax.sweep.plan import Plan as Plan
from minigpt_jax.sweep.plan import make as make
from minigpt_jax.sweep.worker import Outcome as Outcome
from minigpt_jax.sweep.worker import sweep as sweep
