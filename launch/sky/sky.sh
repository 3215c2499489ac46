#!/usr/bin/env bash
# sky.sh [--dry-run] COMMAND: a run by SkyPilot, on any cloud that has GPUs, or TPUs.
#
#   learner FLAG...   starts the learner, or goes on from its last checkpoint
#   samplers          starts samplers as managed jobs, which SkyPilot starts again when they are preempted
#   stop              ends samplers and learner; the learner's machines stay
#   delete            stop, and the machines go, with the run's own files
#
# Settings are environment variables:
#   NAME BUCKET       of the run; what all machines see, such as gs://mine or s3://mine
#   GPUS NODES        of the learner: H100:8 (default), or a TPU slice such as tpu-v6e-16; number of nodes (1)
#   SAMPLER_GPUS SAMPLERS   of each sampler (H100:1), and how many (2)
# --dry-run prints every command and runs none; `sky check` says what SkyPilot can reach. Credentials are
# in certs/, made when they are not there.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "sky.sh: $1" >&2; exit 2; }
dry=''
words=() # without --dry-run, wherever it stands
for word; do if [ "$word" = --dry-run ]; then dry=1; else words+=("$word"); fi; done
set -- "${words[@]}"
command=${1:---help}
case $command in
  learner | samplers | stop | delete) shift ;;
  --help) sed -n '2,14s/^# \?//p' launch/sky/sky.sh; exit ;;
  *) fail "got $command, expected learner, samplers, stop or delete" ;;
esac
[ "$command" = learner ] || [ $# -eq 0 ] || fail "$command: got $*, expected nothing behind it"
[ -n "${NAME:-}" ] || fail "NAME: missing, expected a name for the run"
[[ ${BUCKET:-} == *://* ]] || fail "BUCKET: got '${BUCKET:-}', expected such as gs://mine"
GPUS=${GPUS:-H100:8} SAMPLER_GPUS=${SAMPLER_GPUS:-H100:1} SAMPLERS=${SAMPLERS:-2}
[[ $SAMPLERS =~ ^[0-9]+$ ]] || fail "SAMPLERS: got $SAMPLERS, expected a number"

run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@" >&3; echo >&3; else "$@"; fi
}
settings() { # GPUS: flags that both tasks get
  local extra=cuda
  [[ $1 != tpu-* ]] || extra=tpu
  flags=(--gpus="$1" --env="RUN=$NAME" --env="BUCKET=$BUCKET" --env="EXTRA=$extra" --detach-run --yes)
}
exec 3>&1
case $command in
  learner)
    [ $# -gt 0 ] || fail "learner: got no flags, expected at least --config=FILE"
    [ -e certs/token ] || run launch/make_certs.sh certs learner
    settings "$GPUS"
    run sky launch --cluster="$NAME" --num-nodes="${NODES:-1}" "${flags[@]}" --env="FLAGS=$(printf '%q ' "$@")" \
      launch/sky/learner.yaml ;;
  samplers)
    address=$(run sky status --ip "$NAME")
    settings "$SAMPLER_GPUS"
    for ((i = 0; i < SAMPLERS; i++)); do
      run sky jobs launch --name="$NAME-sampler-$i" "${flags[@]}" --env="LEARNER=${address:-ADDRESS}" launch/sky/sampler.yaml
    done ;;
  stop | delete)
    for ((i = 0; i < SAMPLERS; i++)); do run sky jobs cancel --name="$NAME-sampler-$i" --yes; done
    if [ "$command" = stop ]; then run sky cancel --all --yes "$NAME"; else run sky down --yes "$NAME"; fi ;;
esac
