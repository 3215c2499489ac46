#!/usr/bin/env bash
# tpu_vm.sh [--dry-run] COMMAND: a learner and samplers on TPU VMs of the Cloud TPU API (v5e, v5p, v6e).
#
# That API is frozen: it gets mended, but no new TPUs. v5e has no other VMs; for v5p and v6e prefer
# launch/tpu_mig.sh, which TPU7x needs.
#
#   create           requests what is not there (queued resources), waits for the learner's
#   setup            copies the project and the credentials to all hosts, installs
#   learner FLAG...  starts the learner on all its hosts; FLAGs are its own: --config=..., --config.KEY=...
#   samplers         starts a sampler on every sampler host that is there
#   logs [HOST]      the last lines of the learner's first host, or of HOST
#   stop             samplers finish their groups, then the learner leaves a checkpoint
#   delete           gives everything back, the run's files on the learner's first host, too
#
# Settings are environment variables:
#   NAME ZONE        of the learner's slice; samplers are called NAME-sampler-0, NAME-sampler-1, ...
#   SHARED           what all hosts see: a bucket (mounted with gcsfuse), or HOST:/EXPORT (NFS)
#   TYPE SAMPLER_TYPE SAMPLERS   accelerators (default v5litepod-16, and v5litepod-4: one host), and
#                    how many samplers (2); they are spot VMs: `create` asks again for those that are gone
#   RUNTIME          of the VMs (by type: v2-alpha-tpuv5-lite, v2-alpha-tpuv5 or v2-alpha-tpuv6e)
#   EXTRAS CERTS     to install (tpu); directory of launch/make_certs.sh (certs), made when not there
# --dry-run prints every command of this machine and runs none. Needs gcloud with a project, and git.
set -euo pipefail
cd "$(dirname "$0")/.."
script=tpu_vm.sh dry=''
words=() # without --dry-run, wherever it stands
for word; do if [ "$word" = --dry-run ]; then dry=1; else words+=("$word"); fi; done
set -- "${words[@]}"
command=${1:---help}
. launch/tpu_hosts.bash
case $command in
  create | setup | learner | samplers | logs | stop | delete) shift ;;
  --help) sed -n '2,25s/^# \?//p' launch/tpu_vm.sh; exit ;;
  *) fail "got $command, expected create, setup, learner, samplers, logs, stop or delete" ;;
esac
TYPE=${TYPE:-v5litepod-16} SAMPLER_TYPE=${SAMPLER_TYPE:-v5litepod-4} SAMPLERS=${SAMPLERS:-2}
EXTRAS=${EXTRAS:-tpu} CERTS=${CERTS:-certs}
check_settings "$@"

queue() { run gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }
vm() { run gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
remote() { vm ssh "$1" --worker="$2" --command="$3"; }
send() { vm scp "${@:3}" "$1:$2" --worker=all; }
state() { queue list --filter="name~/$1\$" --format='value(state.state)'; } # empty: not there
sampler_names() { for ((i = 0; i < SAMPLERS; i++)); do echo "$NAME-sampler-$i"; done; }
learner_hosts() { echo "$NAME"; }
learner_first() { learner_hosts; }
sampler_hosts() {
  local host found
  for host in $(sampler_names); do
    found=$(state "$host")
    [ -z "$dry" ] || found=ACTIVE
    if [ "$found" = ACTIVE ]; then echo "$host"; else echo "$host: ${found:-not there}, left out" >&3; fi
  done
}
start_learner() { on "$NAME" all "learner $SHARED $NAME --coordinator=auto $1"; }
learner_address() {
  if [ -n "$dry" ]; then echo LEARNER_ADDRESS; else vm describe "$NAME" --format='value(networkEndpoints[0].ipAddress)'; fi
}
runtime() { # TYPE
  case ${RUNTIME:-$1} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | tpu-*) echo "$RUNTIME" ;;
    *) fail "TYPE: got $1, which this API does not have; v5litepod-N, v5p-N or v6e-N, or launch/tpu_mig.sh" ;;
  esac
}
request() { # HOST TYPE FLAG...: unless it is there; what was lost is requested again
  local found version
  version=$(runtime "$2")
  found=$(state "$1")
  case $found in
    '') ;;
    FAILED | SUSPENDED) queue delete "$1" --force --quiet ;;
    *) echo "$1: $found"; return ;;
  esac
  queue create "$1" --node-id="$1" --accelerator-type="$2" --runtime-version="$version" --async "${@:3}"
}
case $command in
  create)
    request "$NAME" "$TYPE"
    for host in $(sampler_names); do request "$host" "$SAMPLER_TYPE" --spot; done
    until found=$(state "$NAME"); [ -n "$dry" ] || [ "$found" = ACTIVE ]; do
      [[ ! $found =~ ^(FAILED|SUSPEND.*|DELETING|)$ ]] || fail "$NAME: ${found:-not there}; run create again"
      echo "$NAME: $found, waiting"
      sleep "${POLL_SECONDS:-30}"
    done ;;
  delete) for host in $(sampler_names) "$NAME"; do queue delete "$host" --force --quiet --async; done ;;
  *) act "$@" ;;
esac
