#!/usr/bin/env bash
# pod.sh RUN FLAG...: a process of the learner in a pod of a JobSet; launch/Dockerfile puts it into the image.
#
# RUN is the run's directory. If it is shared, the first process keeps the waiting groups on the pod's own
# disk (LOCAL, default /tmp), as LMDB wants; lost ones are sampled again. FLAGs are the learner's.
# A process that was told to end (spot, maintenance, another job's turn) leaves a checkpoint and ends
# with exit code 143, so that Kubernetes takes the run for interrupted and not for finished.
set -euo pipefail
if [ "${1:---help}" = --help ]; then sed -n '2,7s/^# \?//p' "$0"; exit; fi
run=$1 groups=${LOCAL:-/tmp}/groups
shift
mkdir -p "$run" "$groups"
if [ "${MEGASCALE_SLICE_ID:-0} ${JOB_COMPLETION_INDEX:-0}" = "0 0" ] && [ ! "$run" -ef "${groups%/*}/run" ]; then
  ln -sfn "$groups" "$run/groups"
fi
told='' code=0
offpolicy-rl learner --run_dir="$run" --coordinator=auto --resume "$@" &
learner=$!
trap 'told=143; kill -TERM "$learner"' TERM
wait "$learner" || code=$?
[ -z "$told" ] || { code=$told; wait "$learner" || true; } # the first wait ended with the signal
exit "$code"
