#!/usr/bin/env bash
# local.sh [--dry-run] [--learners=N] [--samplers=N] [--port=PORT] --run_dir=DIR FLAG...: one run on this machine,
# the learner split over N processes (default 2) that serve N samplers (default 2).
#
# FLAGs are the learner's, e.g. --config=configs/test.py --config.mesh.data=2: the mesh has as many
# devices as all processes together, one each on CPU. PORT (default 50051) is the learner's, PORT+1
# the coordinator's. DIR/logs has one file per process; DIR-checkpoints and DIR-weights are shared.
# Ctrl-C (in the background, SIGTERM: shells ignore Ctrl-C's signal there) ends all in order (a
# checkpoint stays; go on with --resume), a second one at once. When a process fails, so does the
# script, and the others end.
#
# --dry-run prints the processes' commands and starts none. For one learner process, `offpolicy-rl local`
# is enough.
set -euo pipefail
usage() { sed -n '2,14s/^# \?//p' "$0"; }

learners=2 samplers=2 port=50051 run_dir='' flags=() dry=''
for argument in "$@"; do
  case $argument in
    --help) usage; exit ;;
    --dry-run) dry=1 ;;
    --learners=*) learners=${argument#*=} ;;
    --samplers=*) samplers=${argument#*=} ;;
    --port=*) port=${argument#*=} ;;
    --run_dir=*) run_dir=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done
for pair in "learners $learners" "samplers $samplers" "port $port"; do
  [[ $pair =~ \ [1-9][0-9]*$ ]] || { echo "--${pair/ /: got }, expected a number from 1" >&2; exit 2; }
done
[ -n "$run_dir" ] || { echo "--run_dir: missing, expected the directory of the run" >&2; exit 2; }
[ -n "$dry" ] || mkdir -p "$run_dir/logs"

set -m # every process in a group of its own: Ctrl-C reaches this script only, which passes it on once
declare -A name_of
lifeline=$(mktemp -d) # a pipe that the kernel closes when this script is gone: then all end
mkfifo "$lifeline/pipe"
exec 8<> "$lifeline/pipe"
exec 9< "$lifeline/pipe"
rm -r "$lifeline"
start() { # NAME ARGUMENT...
  if [ -n "$dry" ]; then printf '%q ' offpolicy-rl "${@:2}"; echo; return; fi
  OFFPOLICY_RL_PARENT=9 offpolicy-rl "${@:2}" 8>&- >> "$run_dir/logs/$1.log" 2>&1 &
  name_of[$!]=$1
  echo "$1: process $!, $run_dir/logs/$1.log"
}
end() { # CODE
  # The shell's own list has a process that was started just before a signal came.
  trap 'kill -KILL $(jobs -p) 2> /dev/null' INT TERM
  # shellcheck disable=SC2046
  kill -TERM $(jobs -p) 2> /dev/null || true # those that are there
  wait
  exit "$1"
}
trap 'end 130' INT TERM HUP

for ((i = 0; i < learners; i++)); do
  start "learner-$i" learner --run_dir="$run_dir" --listen="127.0.0.1:$port" \
    --coordinator="127.0.0.1:$((port + 1))" --num_processes="$learners" --process_id="$i" \
    --checkpoint_dir="$run_dir-checkpoints" --weights_dir="$run_dir-weights" "${flags[@]}"
done
for ((i = 0; i < samplers; i++)); do
  start "sampler-$i" sampler --learner="127.0.0.1:$port" --weights_dir="$run_dir-weights" \
    --name="local-$i" --patience=600
done
[ -z "$dry" ] || exit 0
echo "follow it with: offpolicy-rl watch $run_dir"
for ((left = learners + samplers; left > 0; left--)); do
  code=0
  wait -n -p ended || code=$?
  echo "${name_of[$ended]} ended with exit code $code; see $run_dir/logs/${name_of[$ended]}.log" >&2
  [ "$code" = 0 ] || { echo "Ending the others." >&2; end "$code"; }
done
echo "done: $run_dir"
