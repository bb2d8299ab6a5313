#!/usr/bin/env bash
# Runs minigpt from this checkout, from any folder. On first use it makes the Python environment in .venv beside this
# file, with uv where that is on PATH and else with venv and pip. It needs no more than Python and bash 3.2.
#
# .venv/minigpt.stamp tells what the environment was made from: this folder, $PYTHON, the extras, and pyproject.toml
# word for word. As long as it agrees, a start reads these two files and becomes Python. The stamp is written last, so
# that an installation cut short is never taken for a whole one.
set -euo pipefail

usage() {
  cat <<'END'
usage: ./launch.sh FILE.py [flags]          run an experiment, such as experiments/quickstart.py
       ./launch.sh COMMAND [arguments]

commands:
  train FILE.py [flags]      the same as FILE.py [flags]
  sample RUN_DIR [flags]     text from a checkpoint
  evaluate RUN_DIR [flags]   perplexity and bits per byte
  sweep FILE.py AXIS ...     trials over an experiment's fields
  report RUN_DIR ...         tables and plots
  test [pytest arguments]    the tests

FILE.py --help lists an experiment's flags, COMMAND --help a command's. Relative paths mean the folder you are in.

The Python environment is made in .venv on first use; an activated one that has minigpt_jax in it is used instead.
  PYTHON               the interpreter to make .venv with, such as python3.12
  MINIGPT_ACCELERATOR  the JAX to install: cpu, cuda12, cuda13 or tpu, instead of what this machine seems to want
END
}

say() { printf 'launch.sh: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 2
}

# ---- What is asked for, and what is there ----

# Sets `accelerator` to the extra to install: cuda12, cuda13, tpu, or nothing for the CPU.
find_accelerator() {
  local gpu driver capability=99
  case ${MINIGPT_ACCELERATOR:-auto} in
    cpu) accelerator='' && return ;;
    cuda12 | cuda13 | tpu) accelerator=$MINIGPT_ACCELERATOR && return ;;
    auto) ;;
    *) die "MINIGPT_ACCELERATOR=$MINIGPT_ACCELERATOR is none of cpu, cuda12, cuda13, tpu" ;;
  esac
  # An environment made for an accelerator also serves a machine without one, and nvidia-smi takes its time.
  for accelerator in cuda13 cuda12 tpu; do
    if [[ $made_extras == *",$accelerator,"* ]]; then return; fi
  done
  accelerator=''
  if type -P nvidia-smi >/dev/null &&
    gpu=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) &&
    [[ $gpu =~ ([0-9]{3,})\.[0-9] ]]; then
    driver=${BASH_REMATCH[1]}
    if [[ $gpu =~ ,\ *([0-9]+)\.([0-9]) ]]; then capability=${BASH_REMATCH[1]}${BASH_REMATCH[2]}; fi
    # CUDA 13 wants driver 580 and compute capability 7.5 (Turing); CUDA 12 wants driver 525.
    if ((driver >= 580 && capability >= 75)); then
      accelerator=cuda13
    elif ((driver >= 525)); then
      accelerator=cuda12
    else
      say "the NVIDIA driver $driver is too old for JAX, which wants 525: going on with the CPU"
    fi
  elif compgen -G '/dev/accel[0-9]*' >/dev/null ||
    { [ -n "${!TPU_*}" ] && compgen -G '/dev/vfio/[0-9]*' >/dev/null; }; then
    accelerator=tpu
  fi
}

# Whether .venv is whole and holds all that is asked for.
environment_fits() {
  local extra
  made_root='' made_python='' made_extras='' made_project=''
  if [ -f "$stamp" ]; then
    { IFS= read -r made_root && IFS= read -r made_python && IFS= read -r made_extras &&
      IFS= read -rd '' made_project; } <"$stamp" || :
  fi
  find_accelerator
  for extra in $accelerator $test_extras; do
    if [[ $made_extras != *",$extra,"* ]]; then return 1; fi
  done
  [[ $made_root == "$root" && $made_project == "$project" && -x $python && ${PYTHON:-$made_python} == "$made_python" ]]
}

# Sets `activated` to the folder of an activated environment that has the package, or to nothing.
find_activated() {
  local installed
  for activated in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ -x "$activated/bin/python" ] && ! [ "$activated" -ef "$venv" ]; then
      for installed in "$activated"/lib/python3*/site-packages/minigpt_jax*; do
        if [ -e "$installed" ]; then return; fi
      done
    fi
  done
  activated=''
}

# ---- One at a time ----

# Takes the lock that makers of the environment share, on this machine or on others that mount the same folder, as the
# tasks of one srun do. mkdir is atomic on network file systems too, where flock may hold on one machine only. The
# holder's heart beats in the lock; where it has stopped for a minute the holder was killed, and the lock is broken.
take_lock() {
  local error beat last='' since=$SECONDS missing=0
  token="$HOSTNAME.$$.$RANDOM"
  until error=$(mkdir "$lock" 2>&1); do
    if [ ! -d "$lock" ]; then # just given back, or the folder cannot be written to
      if ((++missing == 5)); then die "cannot make .venv: $error"; fi
      continue
    fi
    missing=0
    if [ -z "$waited" ]; then
      waited=yes
      say "waiting for another launch.sh that is setting up .venv ..."
    fi
    sleep 1
    { IFS= read -r beat <"$lock/beat"; } 2>/dev/null || beat=''
    if [[ $beat != "$last" ]]; then
      last=$beat since=$SECONDS
    elif ((SECONDS - since > 60)); then
      mv "$lock" "$lock.$token" 2>/dev/null || :
      rm -rf "$lock.$token" "$log"
      last='' since=$SECONDS
    fi
  done
  echo "$token" >"$lock/beat"
  # From within, so that a lock broken and taken by another is not written to; before the traps, lest it inherit them.
  (cd "$lock" && while sleep 2 && kill -0 $$; do echo "$token $SECONDS" >beat; done) >/dev/null 2>&1 </dev/null &
  heart=$!
  trap give_lock_back EXIT
  trap 'interrupted 130' INT
  trap 'interrupted 143' TERM HUP
}

give_lock_back() {
  local holder=''
  kill "$heart" 2>/dev/null && wait "$heart" 2>/dev/null || :
  { read -r holder _ <"$lock/beat"; } 2>/dev/null || :
  if [[ $holder == "$token" ]]; then rm -rf "$lock"; fi
  trap - EXIT INT TERM HUP
}

interrupted() {
  if [ -n "$child" ]; then kill "$child" 2>/dev/null && wait "$child" 2>/dev/null || :; fi
  rm -f "$log"
  give_lock_back
  exit "$1"
}

# ---- Making the environment ----

# Whether an interpreter runs and requires-python admits it; sets `version`.
python_fits() {
  # A pyenv shim stands on PATH whether or not its Python is there, hence the call.
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=''
  [[ $version =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= oldest && BASH_REMATCH[1] <= newest))
}

# Sets `base` to the interpreter to make the environment with, or says why there is none.
find_python() {
  local candidate minor seen='' names=(python3 python)
  for ((minor = newest; minor >= oldest; minor--)); do names+=("python3.$minor"); done
  if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
  for candidate in "${names[@]}"; do
    if python_fits "$candidate"; then
      base=$("$candidate" -c 'import sys; print(sys.executable)')
      if [ -n "$uv" ] || "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then return; fi
      version="$version without venv and ensurepip (on Debian: apt install python$version-venv)"
    fi
    if [ -n "$version" ]; then seen+="${seen:+, }$candidate is $version"; fi
  done
  if [ -n "${PYTHON:-}" ] && [ -z "$seen" ]; then seen="PYTHON=$PYTHON does not run"; fi
  needs="minigpt needs Python 3.$oldest to 3.$newest, but ${seen:-there is no python3 on PATH}"
  # uv may know of others, or fetch one.
  if [ -n "${PYTHON:-}" ] || [ -z "$uv" ]; then die "$needs; name another with PYTHON=/path/to/python3.$newest"; fi
  base=$requires
}

# Runs a step of the installation, its output to the log; in the background, so that a signal is heard at once.
run_logged() {
  local status=0
  printf '+ %s\n' "$*" >>"$log"
  # Not the packages of a cluster's modules: what they bring would pass for installed.
  (cd "$root" && unset PYTHONPATH PYTHONHOME VIRTUAL_ENV && exec "$@") >>"$log" 2>&1 </dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  return "$status"
}

install() {
  if [ ! -x "$python" ]; then
    # --seed: users expect pip in there.
    if [ -n "$uv" ]; then
      run_logged "$uv" venv --allow-existing --seed --python "$base" "$venv" || return
    else
      run_logged "$base" -m venv "$venv" || return
    fi
    needs=''
  fi
  if [ -n "$uv" ]; then
    # Bytecode now, as pip does it: not once more in each of many processes that start together.
    run_logged "$uv" pip install --compile-bytecode --python "$python" --editable "$1"
  else
    run_logged "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --editable "$1"
  fi
}

# The installed packages, to tell whether a failed installation has changed anything.
contents() {
  ls -di "$venv"/lib/python3*/site-packages/*.dist-info 2>/dev/null || :
}

make_environment() {
  local uv base='' needs='' version oldest newest requires extra extras=',' before reason tool
  uv=$(type -P uv) || uv=''
  tool=${uv:+uv} tool=${tool:-pip}
  take_lock
  if environment_fits; then # made by another while this one waited
    give_lock_back
    return
  fi
  if [ -n "$waited" ] && [ -s "$log" ]; then die "the other launch.sh could not set up .venv; its log: $log"; fi
  rm -f "$log"
  local admits='requires-python = "(>=3\.([0-9]+),<3\.([0-9]+))"'
  [[ $project =~ $admits ]] || die "no requires-python such as \">=3.11,<3.14\" in $root/pyproject.toml"
  requires=${BASH_REMATCH[1]} oldest=${BASH_REMATCH[2]} newest=$((BASH_REMATCH[3] - 1))

  # Keep what is there if it is whole, or the user's own making, and more of it is all that is wanted.
  if python_fits "$python" && [[ ! -f $stamp || ($made_root == "$root" && ${PYTHON:-$made_python} == "$made_python") ]] &&
    { [[ $made_extras != *,cuda* && $made_extras != *,tpu,* ]] || [[ $made_extras == *",$accelerator,"* ]]; }; then
    extras=${made_extras:-,}
    say "updating .venv with $tool ..."
  else
    find_python
    say "setting up .venv with $tool (once; it takes a minute or two) ..."
    rm -rf "$venv"
  fi
  for extra in $accelerator $test_extras; do
    if [[ $extras != *",$extra,"* ]]; then extras+=$extra,; fi
  done

  mkdir -p "$venv"
  before=$(contents)
  if [ -f "$stamp" ]; then mv "$stamp" "$stamp.old"; fi
  echo unfinished >"$stamp"
  : >"$log"
  extra=${extras#,} extra=${extra%,}
  if ! install ".${extra:+[$extra]}"; then
    # A failure that changed nothing, such as no network, leaves the environment that was there in force.
    if [ -n "$before" ] && [[ $(contents) == "$before" ]]; then
      rm "$stamp"
      if [ -f "$stamp.old" ]; then mv "$stamp.old" "$stamp"; fi
    fi
    reason=$(awk 'tolower($0) ~ /^ *(error|×)/ { told = 1 } told' "$log" | head -n 4)
    reason=$(printf '%s' "${reason:-$(tail -n 1 "$log")}" | tr -s ' \n' ' ' | cut -c 1-300)
    die "could not set up .venv with $tool: ${needs:-$reason} (whole log: $log)"
  fi
  printf '%s\n' "$root" "${PYTHON:-}" "$extras" >"$stamp.new"
  printf '%s' "$project" >>"$stamp.new"
  mv "$stamp.new" "$stamp"
  rm -f "$log" "$stamp.old"
  give_lock_back
}

# ---- The way in ----

main() {
  case ${1:-} in
    '') usage >&2 && exit 2 ;;
    -h | --help | help) usage && exit 0 ;;
    *.py) set -- train "$@" ;;
  esac

  local self=${BASH_SOURCE[0]} link root
  while [ -L "$self" ]; do # on macOS readlink has no -f
    link=$(readlink "$self")
    if [[ $link == /* || $self != */* ]]; then self=$link; else self=${self%/*}/$link; fi
  done
  if [[ $self != */* ]]; then self=./$self; fi
  root=$(CDPATH='' cd "${self%/*}/" && pwd -P)
  local venv=$root/.venv log=$root/.venv.log lock=$root/.venv.lock
  local python=$venv/bin/python stamp=$venv/minigpt.stamp
  local project='' activated accelerator test_extras='' waited='' child='' heart='' token=''
  local made_root made_python made_extras made_project
  if ! [ -f "$root/pyproject.toml" ]; then
    die "no pyproject.toml in $root: start launch.sh where it lies in the checkout (sbatch copies it: use srun or --wrap)"
  fi
  IFS= read -rd '' project <"$root/pyproject.toml" || :
  # The tests need what they compare with, and so CI's command is the user's.
  if [[ $1 == test ]]; then test_extras='dev kerashub'; fi

  find_activated
  if [ -n "$activated" ]; then
    python=$activated/bin/python
    if [[ $1 == test ]] && ! "$python" -c 'import pytest, xdist' 2>/dev/null; then
      die "the activated environment $activated lacks pytest: pip install -e '${root}[dev,kerashub]', or deactivate it"
    fi
  elif ! environment_fits; then
    make_environment
  fi
  # This checkout's code, whichever one is installed in an activated environment or lies on the user's PYTHONPATH.
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

  # -P: a file of the caller's folder that is called like a module must not stand in for it.
  if [[ $1 == test ]]; then
    shift
    run_tests "$@"
  fi
  exec "$python" -P -m minigpt_jax "$@"
}

# All the tests on all the cores, or those of the paths given.
run_tests() {
  local argument
  for argument in "$@"; do
    if [ -e "${argument%%::*}" ]; then exec "$python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" "$@"; fi
  done
  exec "$python" -P -m pytest -c "$root/pyproject.toml" --rootdir "$root" -n logical --maxprocesses 8 --dist worksteal "$root/tests" "$@"
}

main "$@"
