#!/usr/bin/env bash
# Runs minigpt from this checkout, from any folder. On first use it makes the Python environment in .venv beside this
# file, with uv where that is on PATH and with venv and pip elsewhere. Bash 3.2, which macOS has, is enough.
#
# .venv/minigpt.stamp holds what the environment was made from: this folder, $PYTHON, the extras and pyproject.toml.
# While they are the same, a start reads these two files and becomes Python. The stamp is written last, so that an
# interrupted installation is never taken for a finished one.
set -euo pipefail

usage='usage: ./launch.sh FILE.py [flags]          run an experiment, such as experiments/quickstart.py
       ./launch.sh COMMAND [arguments]

commands:
  train FILE.py [flags]      the same as FILE.py [flags]
  sample RUN_DIR [flags]     text from a checkpoint
  evaluate RUN_DIR [flags]   perplexity and bits per byte
  sweep FILE.py AXIS ...     trials over the fields of an experiment
  report RUN_DIR ...         tables and plots
  export RUN_DIR --to PATH   a Hugging Face folder made of a run
  import HF_DIR --to DIR     a run directory made of a Hugging Face folder
  test [pytest arguments]    the tests

FILE.py --help lists the flags of an experiment, COMMAND --help those of a command. Relative paths start at the current
folder. The Python environment is made in .venv on first use; an activated one with minigpt_jax in it is used instead.
  PYTHON               the interpreter to make .venv with, such as python3.12
  MINIGPT_ACCELERATOR  the JAX to install: cpu, cuda12, cuda13 or tpu; by default what this machine seems to have'

say() { printf 'launch.sh: %s\n' "$*" >&2; }
die() { say "$@" && exit 2; }
fail() { failed=yes && die "$@"; } # leaves the log there

# Sets `accelerator` to an extra: cuda12, cuda13, tpu, or nothing for the CPU.
find_accelerator() {
  local gpu driver capability=99
  case ${MINIGPT_ACCELERATOR:-auto} in
    auto) ;;
    cpu) accelerator='' && return ;;
    cuda12 | cuda13 | tpu) accelerator=$MINIGPT_ACCELERATOR && return ;;
    *) die "MINIGPT_ACCELERATOR=$MINIGPT_ACCELERATOR is none of cpu, cuda12, cuda13, tpu" ;;
  esac
  # An environment that was made for an accelerator also serves a machine without one, and nvidia-smi is slow.
  for accelerator in cuda13 cuda12 tpu ''; do [[ $made_extras == *",$accelerator,"* ]] && return; done
  if gpu=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) &&
    [[ $gpu =~ ([0-9]{3,})\.[0-9] ]]; then
    driver=${BASH_REMATCH[1]}
    [[ $gpu =~ ,\ *([0-9]+)\.([0-9]) ]] && capability=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
    # CUDA 12 needs driver 525; CUDA 13 needs driver 580 and compute capability 7.5 (Turing).
    case $((driver >= 525))$((driver >= 580 && capability >= 75)) in
      11) accelerator=cuda13 ;;
      10) accelerator=cuda12 ;;
      *) say "the NVIDIA driver $driver is too old for JAX, which needs 525: using the CPU" ;;
    esac
  elif compgen -G '/dev/accel[0-9]*' || { [ -n "${!TPU_*}" ] && compgen -G '/dev/vfio/[0-9]*'; }; then
    accelerator=tpu
  fi >/dev/null
}

# Whether .venv is finished and has all that is needed.
environment_fits() {
  local extra
  made_root='' made_python='' made_extras='' made_project=''
  [ ! -f "$stamp" ] || { IFS= read -r made_root && IFS= read -r made_python && IFS= read -r made_extras &&
    IFS= read -rd '' made_project; } <"$stamp" || :
  find_accelerator
  for extra in $accelerator $needed; do [[ $made_extras == *",$extra,"* ]] || return; done
  [[ $made_root == "$root" && $made_project == "$project" && -x $python && ${PYTHON:-$made_python} == "$made_python" ]]
}

# Sets `activated` to the folder of an activated environment that has the package, or to nothing.
find_activated() {
  local installed
  for activated in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ ! -x "$activated/bin/python" ] || [ "$activated" -ef "$venv" ]; then continue; fi
    for installed in "$activated"/lib/python3*/site-packages/minigpt_jax*; do [ -e "$installed" ] && return; done
  done
  activated=''
}

# Takes the lock that makers of the environment share, also on other machines with the same folder: mkdir is atomic on
# network file systems, where flock may not work. The holder touches the lock; one untouched for a minute is removed.
take_lock() {
  local error missing=0
  until error=$(mkdir "$lock" 2>&1); do
    if [ ! -d "$lock" ]; then # just released, or the folder is not writable
      ((++missing < 5)) && continue || die "cannot make .venv: $error"
    fi
    [ -n "$waited" ] || say "waiting for another launch.sh that is setting up .venv ..."
    waited=yes
    sleep 1
    # One at a time, so that nobody removes the lock of the next holder.
    if stale_lock && mkdir "$lock.stale" 2>/dev/null; then
      ! stale_lock || rm -rf "$lock" "$log"
      rm -rf "$lock.stale"
    fi
  done
  while sleep 2 && kill -0 $$; do touch -c "$lock"; done >/dev/null 2>&1 </dev/null &
  heart=$!
  trap unlock EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

stale_lock() { [ -n "$(find "$lock" -prune -mmin +1 2>/dev/null)" ]; }

unlock() {
  trap - EXIT INT TERM HUP
  kill $heart $child 2>/dev/null && wait $heart $child 2>/dev/null || : # unquoted: there may be no child
  [ -n "$failed" ] || rm -f "$log"
  rm -rf "$lock"
}

# Whether an interpreter runs and is one of the versions that the package supports; sets `version`.
python_fits() {
  # A pyenv shim is on PATH whether its Python is installed or not, hence the call.
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=''
  [[ $version =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= oldest && BASH_REMATCH[1] <= newest))
}

# Sets `base` to the interpreter to make the environment with, or dies with those there are.
find_python() {
  local minor seen='' candidates=(python3 python)
  for ((minor = newest; minor >= oldest; minor--)); do candidates+=("python3.$minor"); done
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for base in "${candidates[@]}"; do
    if python_fits "$base"; then
      if [ -n "$uv" ] || "$base" -c 'import venv, ensurepip' 2>/dev/null; then return; fi
      version+=" without venv and ensurepip (on Debian: apt install python$version-venv)"
    fi
    [ -z "$version" ] || seen+="${seen:+, }$base is $version"
  done
  [ -z "${PYTHON:-}" ] || seen=${seen:-PYTHON=$PYTHON does not run}
  die "$supported, but ${seen:-there is no python3 on PATH}; name another with PYTHON=/path/to/python3.$newest"
}

# Runs a step of the installation, its output to the log; in the background, so that a signal is noticed at once.
logged() {
  printf '+ %s\n' "$*" >>"$log"
  # Without the packages of a cluster's modules: pip would take those for installed.
  (cd "$root" && unset PYTHONPATH PYTHONHOME VIRTUAL_ENV && exec "$@") >>"$log" 2>&1 </dev/null &
  child=$!
  wait "$child" && child='' || return
}

# The installed packages, to tell whether a failed installation has changed anything.
contents() { ls -di "$venv"/lib/python3*/site-packages/*.dist-info 2>/dev/null || :; }

make_environment() {
  local uv tool base version oldest newest supported extra extras=, before reason make_venv install
  local admits='requires-python = "(>=3\.([0-9]+),<3\.([0-9]+))"'
  uv=$(type -P uv) && tool=uv || tool=pip
  take_lock
  if environment_fits; then unlock && return; fi # made by another while this one waited
  [ -z "$waited" ] || [ ! -s "$log" ] || fail "the other launch.sh could not set up .venv; its log: $log"
  [[ $project =~ $admits ]] || die "no requires-python such as \">=3.11,<3.14\" in $root/pyproject.toml"
  base=${BASH_REMATCH[1]} oldest=${BASH_REMATCH[2]} newest=$((BASH_REMATCH[3] - 1))
  supported="minigpt needs Python 3.$oldest to 3.$newest"

  # What is there is kept if it is finished or made by the user, and has no other accelerator's JAX.
  if python_fits "$python" &&
    [[ ! -s $stamp || ($made_root == "$root" && ${PYTHON:-$made_python} == "$made_python") ]] &&
    { [[ $made_extras != *,cuda* && $made_extras != *,tpu,* ]] || [[ $made_extras == *",$accelerator,"* ]]; }; then
    extras=${made_extras:-,}
    say "updating .venv with $tool ..."
  else
    # uv finds an interpreter of these versions, or fetches one.
    [ -n "$uv" ] && [ -z "${PYTHON:-}" ] || find_python
    say "setting up .venv with $tool (once; it takes a minute or two) ..."
    rm -rf "$venv" && mkdir "$venv"
  fi
  for extra in $accelerator $needed; do [[ $extras == *",$extra,"* ]] || extras+=$extra,; done
  extra=${extras#,} extra=${extra%,}
  if [ -n "$uv" ]; then
    make_venv=("$uv" venv --allow-existing --seed --python "$base") # --seed: users expect pip in there
    # Bytecode now, as pip does it: not again in each of many processes that start together.
    install=("$uv" pip install --compile-bytecode --python "$python" --editable)
  else
    make_venv=("$base" -m venv)
    install=("$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --editable)
  fi

  before=$(contents)
  touch "$stamp" && mv "$stamp" "$stamp.old" && echo unfinished >"$stamp"
  if { [ -x "$python" ] || logged "${make_venv[@]}" "$venv"; } && logged "${install[@]}" ".${extra:+[$extra]}"; then
    printf '%s\n%s\n%s\n%s' "$root" "${PYTHON:-}" "$extras" "$project" >"$stamp.new"
    mv "$stamp.new" "$stamp" && rm -f "$stamp.old"
    unlock && return
  fi
  # A failure that changed nothing, such as no network, leaves the environment that was there in force.
  [ -z "$before" ] || [[ $(contents) != "$before" ]] || mv "$stamp.old" "$stamp"
  reason=$(awk '/Ignored the following/ { next } tolower($0) ~ /^ *(error|×)/ { told = 1 } told' "$log" | head -n 4)
  reason=$(printf '%s' "${reason:-$(tail -n 1 "$log")}" | tr -s ' \n' ' ' | cut -c 1-300)
  [ -x "$python" ] || reason="$supported: $reason"
  fail "could not set up .venv with $tool: $reason (whole log: $log)"
}

case ${1:-} in
  '') printf '%s\n' "$usage" >&2 && exit 2 ;;
  -h | --help | help) printf '%s\n' "$usage" && exit ;;
  *.py) set -- train "$@" ;;
esac
case $1 in # what a command needs beyond the core: extras of pyproject.toml
  test) needed='dev kerashub' ;; # with what the tests compare with: CI runs the same command as users
  *) needed='' ;;
esac

self=${BASH_SOURCE[0]}
[ ! -L "$self" ] || self=$(readlink -f "$self")
[[ $self == */* ]] || self=./$self
root=$(CDPATH='' cd "${self%/*}/" && pwd -P)
venv=$root/.venv log=$root/.venv.log lock=$root/.venv.lock stamp=$root/.venv/minigpt.stamp python=$root/.venv/bin/python
project='' heart='' child='' waited='' failed=''
[ -f "$root/pyproject.toml" ] ||
  die "no pyproject.toml in $root: start launch.sh where it lies in the checkout (sbatch copies it: use srun or --wrap)"
IFS= read -rd '' project <"$root/pyproject.toml" || :

find_activated
if [ -n "$activated" ]; then
  python=$activated/bin/python
  [[ $1 != test ]] || "$python" -c 'import pytest, xdist' 2>/dev/null ||
    die "the activated environment $activated lacks pytest: pip install -e '${root}[${needed// /,}]', or deactivate it"
elif ! environment_fits; then
  make_environment
fi
# The code of this checkout, whichever one is installed in an activated environment or is on the user's PYTHONPATH.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# -P: a file in the caller's folder with the name of a module must not take its place.
[[ $1 == test ]] || exec "$python" -P -m minigpt_jax "$@"
shift
pytest=("$python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root")
for argument in "$@"; do [ ! -e "${argument%%::*}" ] || exec "${pytest[@]}" "$@"; done
exec "${pytest[@]}" -n logical --maxprocesses 8 --dist worksteal "$root/tests" "$@"
