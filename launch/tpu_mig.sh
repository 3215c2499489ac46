#!/usr/bin/env bash
# tpu_mig.sh [--dry-run] COMMAND: a learner and samplers on TPU VMs of Compute Engine (v5p, v6e, TPU7x).
#
#   create           a managed group for the learner's slice and one for samplers, with their templates
#   setup            copies the project and the credentials to all hosts, installs
#   learner FLAG...  starts the learner on all its hosts; FLAGs are its own: --config=..., --config.KEY=...
#   samplers         starts a sampler on every host of that group
#   logs [HOST]      the last lines of the learner's first host, or of HOST
#   stop             samplers finish their groups, then the learner leaves a checkpoint
#   delete [samplers]   gives everything back, or the samplers only (spot VMs that were stopped stay so:
#                    delete them, then create, setup and start them anew)
#
# Settings are environment variables:
#   NAME PROJECT ZONE   of the groups NAME and NAME-sampler
#   SHARED           what all hosts see: a bucket (mounted with gcsfuse), or HOST:/EXPORT (NFS)
#   MACHINE TOPOLOGY of the learner (default ct6e-standard-4t and 4x4; ct5p-hightpu-4t, tpu7x-standard-4t)
#   CAPACITY         on-demand (default), spot, or reservation/NAME
#   SAMPLER_MACHINE SAMPLER_CAPACITY SAMPLERS   one host each (default as MACHINE, spot, 2)
#   EXTRAS CERTS     to install (tpu); directory of launch/make_certs.sh (certs), made when not there
# --dry-run prints every command of this machine and runs none. Needs gcloud, and git.
set -euo pipefail
cd "$(dirname "$0")/.."
script=tpu_mig.sh dry=''
words=() # without --dry-run, wherever it stands
for word; do if [ "$word" = --dry-run ]; then dry=1; else words+=("$word"); fi; done
set -- "${words[@]}"
command=${1:---help}
. launch/tpu_hosts.bash
case $command in
  create | setup | learner | samplers | logs | stop | delete) shift ;;
  --help) sed -n '2,22s/^# \?//p' launch/tpu_mig.sh; exit ;;
  *) fail "got $command, expected create, setup, learner, samplers, logs, stop or delete" ;;
esac
MACHINE=${MACHINE:-ct6e-standard-4t} TOPOLOGY=${TOPOLOGY:-4x4} CAPACITY=${CAPACITY:-on-demand}
SAMPLER_MACHINE=${SAMPLER_MACHINE:-$MACHINE} SAMPLER_CAPACITY=${SAMPLER_CAPACITY:-spot} SAMPLERS=${SAMPLERS:-2}
EXTRAS=${EXTRAS:-tpu} CERTS=${CERTS:-certs}
check_settings "$@"
[ -n "${PROJECT:-}" ] || fail "PROJECT: missing, expected the project that has the TPUs"
[[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "TOPOLOGY: got $TOPOLOGY, expected such as 4x4 or 2x2x2"
[[ $MACHINE =~ -([0-9]+)t$ ]] || fail "MACHINE: got $MACHINE, expected a TPU machine, such as ct6e-standard-4t"
hosts=$((${TOPOLOGY//x/*} / BASH_REMATCH[1]))
region=${ZONE%-*}

compute() { run gcloud compute "$@" --project="$PROJECT"; }
group() { compute instance-groups managed "$@" --zone="$ZONE"; }
remote() { compute ssh "$1" --zone="$ZONE" --command="$3"; }
send() { compute scp "${@:3}" "$1:$2" --zone="$ZONE"; }
members() { # GROUP SIZE: names of its hosts
  group list-instances "$1" --format='value(name)'
  [ -z "$dry" ] || for ((i = 0; i < $2; i++)); do echo "$1-vm$i"; done
}
learner_hosts() { members "$NAME" "$hosts"; }
sampler_hosts() { members "$NAME-sampler" "$SAMPLERS"; }
workers() { # index, address and name of the learner's hosts, in the order of the slice
  local found host told index=0
  found=$(learner_hosts)
  for host in $found; do
    told=$(on "$host" 0 worker < /dev/null)
    echo "${told:-$index ADDRESS} $host"
    index=$((index + 1))
  done | sort -n
}
learner_address() { workers | awk 'NR == 1 { print $2 }'; }
learner_first() { workers | awk 'NR == 1 { print $3 }'; }
start_learner() {
  local found index address host first=''
  found=$(workers)
  while read -r index address host; do
    first=${first:-$address}
    on "$host" 0 "learner $SHARED $NAME --coordinator=$first:8482 --num_processes=$hosts --process_id=$index $1" \
      < /dev/null
  done <<< "$found"
}
provision() { # MACHINE CAPACITY: flags of a template
  case $1 in
    tpu7x-*) echo --image-family=ubuntu-accel-2404-amd64-tpu-tpu7x --boot-disk-type=hyperdisk-balanced ;;
    ct5p-* | ct6e-*) echo --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e ;;
    *) fail "MACHINE: got $1, expected ct5p-..., ct6e-... or tpu7x-..." ;;
  esac
  case $2 in
    on-demand) ;;
    spot) echo --provisioning-model=SPOT --instance-termination-action=STOP ;;
    reservation/?*) echo --provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE \
      --reservation-affinity=specific --reservation="${2#*/}" ;;
    *) fail "CAPACITY: got $2, expected on-demand, spot or reservation/NAME" ;;
  esac
}
create() { # GROUP MACHINE CAPACITY SIZE FLAG...: unless it is there
  local flags found
  found=$(provision "$2" "$3")
  read -ra flags <<< "${found//$'\n'/ }"
  found=$(compute instance-groups managed list --zones="$ZONE" --filter="name=$1" --format='value(name)')
  [ -z "$found" ] || { echo "$1: is there"; return; }
  compute instance-templates create "$1" --machine-type="$2" --maintenance-policy=TERMINATE \
    --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB --scopes=cloud-platform "${flags[@]}"
  group create "$1" --template="$1" --size="$4" --default-action-on-vm-failure=do-nothing "${@:5}"
}
delete() { # GROUP
  group delete "$1" --quiet
  compute instance-templates delete "$1" --quiet
}
case $command in
  create)
    slice=() # several hosts become one slice by a policy that names its topology
    if [ "$hosts" -gt 1 ]; then
      slice=(--workload-policy="projects/$PROJECT/regions/$region/resourcePolicies/$NAME")
      policies=$(compute resource-policies list --filter="name=$NAME AND region:$region" --format='value(name)')
      [ -n "$policies" ] || compute resource-policies create workload-policy "$NAME" --region="$region" \
        --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
    fi
    create "$NAME" "$MACHINE" "$CAPACITY" "$hosts" "${slice[@]}"
    create "$NAME-sampler" "$SAMPLER_MACHINE" "$SAMPLER_CAPACITY" "$SAMPLERS"
    group wait-until "$NAME" --stable ;;
  delete)
    delete "$NAME-sampler"
    [ "${1:-}" != samplers ] || exit 0
    delete "$NAME"
    [ "$hosts" -eq 1 ] || compute resource-policies delete "$NAME" --region="$region" --quiet ;;
  *) act "$@" ;;
esac
