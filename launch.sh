#!/usr/bin/env bash
# Runs minigpt from this checkout, from any folder. On first use it makes the Python environment .venv beside this file,
# with uv if it is on PATH, else with venv and pip. It needs Bash 3.2, the version of macOS, or a later one.
#
# .venv/minigpt.stamp records what the environment was made from: this folder, $PYTHON, the extras and pyproject.toml. If
# they are unchanged, a start only reads these two files. The stamp is written last, so an interrupted installation is
# never taken for a finished one.
set -euo pipefail

usage='usage: ./launch.sh FILE.py [flags]          run an experiment, such as experiments/quickstart.py
       ./launch.sh COMMAND [arguments]

commands:
  train FILE.py [flags]      the same as FILE.py [flags]
  sample RUN_DIR [flags]     text from a checkpoint
  compare RUN_DIR METHOD ... ways of sampling, judged beside human text
  evaluate RUN_DIR [flags]   perplexity and bits per byte
  sweep FILE.py AXIS ...     trials over the fields of an experiment
  report RUN_DIR ...         tables and plots
  export RUN_DIR --to PATH   a Hugging Face folder, or a GGUF file for llama.cpp, made of a run
  import HF_DIR --to DIR     a run directory made of a Hugging Face folder
  serve RUN_DIR ...          a page to play with sampling, and an OpenAI-compatible endpoint
  lm_eval [arguments]        lm-evaluation-harness, with runs as its model minigpt
  test [pytest arguments]    the tests

FILE.py --help lists the flags of an experiment, COMMAND --help those of a command. Relative paths start at the current
folder. The Python environment is made in .venv on first use; an activated one with minigpt_jax in it is used instead.
  PYTHON               the interpreter to make .venv with, such as python3.12
  MINIGPT_ACCELERATOR  the JAX to install: cpu, cuda12, cuda13 or tpu; by default what this machine seems to have'

say() { printf 'launch.sh: %s\n' "$*" >&2; }
die() { say "$@" && exit 2; }

# Sets `accelerator` to the extra that installs its JAX (cuda12, cuda13 or tpu), or to nothing for the CPU.
find_accelerator() {
  local gpu driver capability=99
  accelerator=${MINIGPT_ACCELERATOR:-auto}
  case $accelerator in
    cuda12 | cuda13 | tpu) return ;;
    cpu) accelerator='' && return ;;
    auto) ;;
    *) die "MINIGPT_ACCELERATOR=$accelerator is none of cpu, cuda12, cuda13, tpu" ;;
  esac
  # An environment for an accelerator also works on a machine without one. This also avoids nvidia-smi, which is slow.
  for accelerator in cuda13 cuda12 tpu ''; do [[ $made_extras == *",$accelerator,"* ]] && return; done
  if gpu=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) &&
    [[ $gpu =~ ([0-9]{3,})\.[0-9] ]]; then
    driver=${BASH_REMATCH[1]}
    [[ $gpu =~ ,\ *([0-9]+)\.([0-9]) ]] && capability=${BASH_REMATCH[1]}${BASH_REMATCH[2]}
    # CUDA 13 needs driver 580 and compute capability 7.5 (Turing); CUDA 12 needs driver 525.
    case $((driver >= 525))$((driver >= 580 && capability >= 75)) in
      11) accelerator=cuda13 ;;
      10) accelerator=cuda12 ;;
      *) say "the NVIDIA driver $driver is too old for JAX, which needs 525: using the CPU" ;;
    esac
  elif compgen -G '/dev/accel[0-9]*' || { [ -n "${!TPU_*}" ] && compgen -G '/dev/vfio/[0-9]*'; }; then
    accelerator=tpu
  fi >/dev/null
}

# Whether .venv is finished and has everything that is needed.
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

# Only one launch.sh at a time makes the environment, also if several machines share the folder. The lock is a folder,
# because mkdir is atomic on network file systems too. Its holder touches it, and it expires after a minute untouched.
take_lock() {
  local error missing=0
  until error=$(mkdir "$lock" 2>&1); do
    if [ ! -d "$lock" ]; then # just released, or the checkout is read-only
      ((++missing < 5)) && continue || die "cannot make .venv: $error"
    fi
    [ -n "$waited" ] || say "waiting for another launch.sh that is setting up .venv ..."
    waited=yes
    sleep 1
    # The second lock ensures that an expired lock is removed once, and never the one that follows it.
    if expired && mkdir "$lock.expired" 2>/dev/null; then
      ! expired || rm -rf "$lock" "$log"
      rm -rf "$lock.expired"
    fi
  done
  trap unlock EXIT
  trap 'rm -f "$log"; exit 130' INT
  trap 'rm -f "$log"; exit 143' TERM HUP
}

expired() { [ -n "$(find "$lock" -prune -mmin +1 2>/dev/null)" ]; }

unlock() {
  trap - EXIT INT TERM HUP
  [ -z "$child" ] || { kill "$child" && wait "$child"; } 2>/dev/null || :
  rm -rf "$lock"
}

# Runs a step of the installation and writes its output to the log. It runs in the background, because Bash handles a
# signal only when the command in the foreground ends.
logged() {
  printf '+ %s\n' "$*" >>"$log"
  # Without PYTHONPATH, whose packages (such as those of a cluster's modules) pip would take for installed.
  (cd "$root" && unset PYTHONPATH PYTHONHOME VIRTUAL_ENV && exec "$@") >>"$log" 2>&1 </dev/null &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    touch -c "$lock"
    sleep 0.1 & # in the background too, for the same reason
    wait $!
  done
  wait "$child"
}

# Whether an interpreter runs and has a version that the package supports; sets `version`.
python_fits() {
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=''
  [[ $version =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= oldest && BASH_REMATCH[1] <= newest))
}

# Sets `base` to the interpreter to make the environment with, or ends with a list of those that were found.
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

packages() { ls -di "$venv"/lib/python3*/site-packages/*.dist-info 2>/dev/null || :; }

make_environment() {
  local uv tool=pip base version oldest newest supported extra extras=, before reason make_venv install
  uv=$(type -P uv) && tool=uv
  take_lock
  if environment_fits; then unlock && return; fi # another launch.sh has just made it
  [ -z "$waited" ] || [ ! -s "$log" ] || die "the other launch.sh could not set up .venv; its log: $log"
  [[ $project =~ requires-python\ =\ \"(>=3\.([0-9]+),<3\.([0-9]+)) ]] ||
    die "no requires-python such as \">=3.11,<3.14\" in $root/pyproject.toml"
  base=${BASH_REMATCH[1]} oldest=${BASH_REMATCH[2]} newest=$((BASH_REMATCH[3] - 1))
  supported="minigpt needs Python 3.$oldest to 3.$newest"

  # Updates .venv if it is finished or made by hand, and has no JAX for another accelerator. Else makes it anew.
  if python_fits "$python" &&
    [[ ! -s $stamp || ($made_root == "$root" && ${PYTHON:-$made_python} == "$made_python") ]] &&
    { [[ $made_extras != *,cuda* && $made_extras != *,tpu,* ]] || [[ $made_extras == *",$accelerator,"* ]]; }; then
    extras=${made_extras:-,}
    say "updating .venv with $tool ..."
  else
    # uv finds or downloads an interpreter of a version in `base`.
    [ -n "$uv" ] && [ -z "${PYTHON:-}" ] || find_python
    say "setting up .venv with $tool (once; it takes a minute or two) ..."
    rm -rf "$venv" && mkdir "$venv"
  fi
  for extra in $accelerator $needed; do [[ $extras == *",$extra,"* ]] || extras+=$extra,; done
  extra=${extras#,} extra=${extra%,}
  if [ -n "$uv" ]; then
    make_venv=("$uv" venv --allow-existing --seed --python "$base") # --seed installs pip
    install=("$uv" pip install --compile-bytecode --python "$python" --editable) # once, before many processes start
  else
    make_venv=("$base" -m venv)
    install=("$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --editable)
  fi

  before=$(packages)
  touch "$stamp" && mv "$stamp" "$stamp.old" && echo unfinished >"$stamp"
  if { [ -x "$python" ] || logged "${make_venv[@]}" "$venv"; } && logged "${install[@]}" ".${extra:+[$extra]}"; then
    printf '%s\n%s\n%s\n%s' "$root" "${PYTHON:-}" "$extras" "$project" >"$stamp.new"
    mv "$stamp.new" "$stamp" && rm -f "$stamp.old" "$log"
    unlock && return
  fi
  # If the failure changed no package, as without a network, the environment that was there stays in use.
  [ -z "$before" ] || [[ $(packages) != "$before" ]] || mv "$stamp.old" "$stamp"
  reason=$(awk '/Ignored the following/ { next } tolower($0) ~ /^ *(error|×)/ { told = 1 } told' "$log" | head -n 4)
  reason=$(printf '%s' "${reason:-$(tail -n 1 "$log")}" | tr -s ' \n' ' ' | cut -c 1-300)
  [ -x "$python" ] || reason="$supported: $reason"
  die "could not set up .venv with $tool: $reason (whole log: $log)"
}

case ${1:-} in
  '') printf '%s\n' "$usage" >&2 && exit 2 ;;
  -h | --help | help) printf '%s\n' "$usage" && exit ;;
  *.py) set -- train "$@" ;;
esac
case $1 in # the extras of pyproject.toml that a command needs
  test) needed='dev kerashub mauve gguf serve' ;;
  compare) needed=mauve ;;
  lm_eval) needed=harness ;;
  export) [[ " $* " == *[\ =]gguf\ * ]] && needed=gguf || needed='' ;;
  serve) needed=serve ;;
  *) needed='' ;;
esac
for argument in "$@"; do
  value=${argument#*=} # of --flag=value; an address alone may have = in it
  [[ ${argument%%=*} != *://* ]] || value=$argument
  case $value in # of --data.files, --storage or --train.trackers
    postgresql*://*) [[ $needed == *postgres* ]] || needed+=' postgres' ;;
    wandb | trackio) [[ $1 != train && $1 != sweep || $needed == *$value* ]] || needed+=" $value" ;;
    http://* | https://* | s3://* | s3a://* | gs://* | gcs://*) [[ $needed == *remote* ]] || needed+=' remote' ;;
  esac
done

self=${BASH_SOURCE[0]}
[ ! -L "$self" ] || self=$(readlink -f "$self")
[[ $self == */* ]] || self=./$self
root=$(CDPATH='' cd "${self%/*}/" && pwd -P)
venv=$root/.venv log=$root/.venv.log lock=$root/.venv.lock stamp=$root/.venv/minigpt.stamp python=$root/.venv/bin/python
project='' child='' waited=''
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
# This checkout's code comes before any other copy in an activated environment or on the user's PYTHONPATH.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# -P: do not import modules from the caller's folder.
[[ $1 == test ]] || exec "$python" -P -m minigpt_jax "$@"
shift
pytest=("$python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root")
for argument in "$@"; do [ ! -e "${argument%%::*}" ] || exec "${pytest[@]}" "$@"; done
exec "${pytest[@]}" -n logical --maxprocesses 8 --dist worksteal "$root/tests" "$@"
