#!/usr/bin/env bash
# tpu_vm.sh [--dry-run] COMMAND: a learner on a slice of TPU VMs, samplers on TPU VMs of their own.
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
#   RUNTIME          of the VMs (v2-alpha-tpuv5-lite);  EXTRAS to install (tpu)
#   CERTS            directory of launch/make_certs.sh (certs), made when it is not there
# --dry-run prints every command of this machine and runs none. Needs gcloud with a project, and git.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "tpu_vm.sh: $1" >&2; exit 2; }
dry='' port=50051
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
command=${1:---help}
case $command in
  create | setup | learner | samplers | logs | stop | delete) shift ;;
  --help) sed -n '2,21s/^# \?//p' launch/tpu_vm.sh; exit ;;
  *) fail "got $command, expected create, setup, learner, samplers, logs, stop or delete" ;;
esac
[ -n "${NAME:-}" ] || fail "NAME: missing, expected a name for the learner's slice"
[ -n "${ZONE:-}" ] || fail "ZONE: missing, expected the zone of the TPUs, such as us-west4-a"
TYPE=${TYPE:-v5litepod-16} SAMPLER_TYPE=${SAMPLER_TYPE:-v5litepod-4} SAMPLERS=${SAMPLERS:-2}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} EXTRAS=${EXTRAS:-tpu} CERTS=${CERTS:-certs}
[[ $SAMPLERS =~ ^[0-9]+$ ]] || fail "SAMPLERS: got $SAMPLERS, expected a number"

exec 3>&1
run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@" >&3; echo >&3; else "$@"; fi
}
queue() { run gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }
vm() { run gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on() { vm ssh "$1" --worker="$2" --command="bash offpolicy_rl/launch/tpu_host.sh $3"; } # HOST WORKER ARGUMENTS
state() { queue list --filter="name~/$1\$" --format='value(state.state)'; } # empty: not there
sampler_hosts() { for ((i = 0; i < SAMPLERS; i++)); do echo "$NAME-sampler-$i"; done; }
each_sampler() { # FUNCTION ARGUMENT...: of those that are there
  local host found
  for host in $(sampler_hosts); do
    found=$(state "$host")
    [ -z "$dry" ] || found=ACTIVE
    if [ "$found" = ACTIVE ]; then "$1" "$host" "${@:2}"; else echo "$host: ${found:-not there}, left out"; fi
  done
}
request() { # HOST TYPE FLAG...: unless it is there; what was lost is requested again
  local found
  found=$(state "$1")
  case $found in
    '') ;;
    FAILED | SUSPENDED) queue delete "$1" --force --quiet ;;
    *) echo "$1: $found"; return ;;
  esac
  queue create "$1" --node-id="$1" --accelerator-type="$2" --runtime-version="$RUNTIME" --async "${@:3}"
}
install() { # HOST CREDENTIAL...
  vm ssh "$1" --worker=all --command="mkdir -p -m 700 certs && mkdir -p offpolicy_rl"
  vm scp "$archive" "$1:project.tgz" --worker=all
  vm scp "${@:2}" "$1:certs" --worker=all
  vm ssh "$1" --worker=all --command="tar -xzf project.tgz -C offpolicy_rl"
  on "$1" all "setup $EXTRAS $SHARED"
}
start_sampler() { on "$1" 0 "sampler $SHARED $NAME --learner=$address:$port"; } # HOST

case $command in
  create)
    request "$NAME" "$TYPE"
    for host in $(sampler_hosts); do request "$host" "$SAMPLER_TYPE" --spot; done
    until found=$(state "$NAME"); [ -n "$dry" ] || [ "$found" = ACTIVE ]; do
      [[ ! $found =~ ^(FAILED|SUSPEND.*|DELETING|)$ ]] || fail "$NAME: ${found:-not there}; run create again"
      echo "$NAME: $found, waiting"
      sleep "${POLL_SECONDS:-30}"
    done ;;
  setup)
    [ -n "${SHARED:-}" ] || fail "SHARED: missing, expected a bucket's name or HOST:/EXPORT"
    [ -e "$CERTS/token" ] || run launch/make_certs.sh "$CERTS" learner
    archive=build/project.tgz # the files that git knows, as they are now
    run bash -c "mkdir -p build && git ls-files -z | tar --null --files-from=- -czf $archive"
    install "$NAME" "$CERTS"/{ca.pem,server.pem,server.key,token}
    each_sampler install "$CERTS"/{ca.pem,client.pem,client.key,token} ;;
  learner)
    [ -n "${SHARED:-}" ] || fail "SHARED: missing, expected a bucket's name or HOST:/EXPORT"
    [ $# -gt 0 ] || fail "learner: got no flags, expected at least --config=FILE"
    on "$NAME" all "learner $SHARED $NAME --listen=0.0.0.0:$port $(printf '%q ' "$@")" ;;
  samplers)
    [ -n "${SHARED:-}" ] || fail "SHARED: missing, expected a bucket's name or HOST:/EXPORT"
    address=$(vm describe "$NAME" --format='value(networkEndpoints[0].ipAddress)')
    [ -z "$dry" ] || address=LEARNER_ADDRESS
    each_sampler start_sampler ;;
  logs) on "${1:-$NAME}" 0 logs ;;
  stop) each_sampler on 0 stop; on "$NAME" all stop ;;
  delete) for host in $(sampler_hosts) "$NAME"; do queue delete "$host" --force --quiet --async; done ;;
esac
