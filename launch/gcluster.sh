#!/usr/bin/env bash
# gcluster.sh [--dry-run] SETTING... -- FLAG...: a run on GKE by Cluster Toolkit's `gcluster job submit`.
#
# FLAGs are the learner's, such as --config=FILE. Settings, named as gcluster names them:
#   --name=NAME              of the learner's job (at most 24 characters); samplers are NAME-s0, NAME-s1, ...
#   --image=IMAGE            of launch/Dockerfile; with a bucket built with --build-arg RUN_AS=0:0, as gcluster
#                            mounts it for root
#   --mount=SOURCE:DIR:rw    what all share: gs://BUCKET, filestore://INSTANCE/SHARE or a claim
#   --compute-type=TYPE      such as v6e-16, with --topology=4x4 and --num-slices=N if you like
#   --sampler-compute-type=TYPE --samplers=N   of one host each (v6e-4, 2)
#   --certs=DIR              of launch/make_certs.sh (certs), made when it is not there
#   --dry-run-out=DIR        gcluster writes the manifests there and applies none
# All others, such as --cluster --location --project --queue --priority --service-account, are gcluster's own.
# Samplers are jobs of their own: one that is lost takes no other with it. Run it again for those that ended.
# --dry-run prints every command and runs none. Needs gcluster (1.95 or newer), and gcloud for a bucket.
set -euo pipefail
fail() { echo "gcluster.sh: $1" >&2; exit 2; }
dry='' name='' mount='' out='' compute='' samplers=2 sampler_compute=v6e-4 certs=certs slice=() shared=()
[ $# -gt 0 ] || set -- --help
while [ $# -gt 0 ]; do
  case $1 in
    --help) sed -n '2,17s/^# \?//p' "$0"; exit ;;
    --dry-run) dry=1 ;;
    --dry-run-out=*) out=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --mount=*) mount=${1#*=} shared+=("$1") ;;
    --compute-type=*) compute=${1#*=} ;;
    --topology=* | --num-slices=*) slice+=("$1") ;;
    --samplers=*) samplers=${1#*=} ;;
    --sampler-compute-type=*) sampler_compute=${1#*=} ;;
    --certs=*) certs=${1#*=} ;;
    --) shift; break ;;
    --*=*) shared+=("$1") ;;
    *) fail "got $1, expected --SETTING=VALUE, and the learner's flags after --" ;;
  esac
  shift
done
[[ $name =~ ^[a-z][-a-z0-9]{0,23}$ ]] || fail "--name: got '$name', expected at most 24 of a-z, 0-9 and -"
[[ $mount =~ ^(.+):(/[^:]+):rw$ ]] || fail "--mount: got '$mount', expected such as gs://BUCKET:/shared:rw"
source=${BASH_REMATCH[1]} home=${BASH_REMATCH[2]}/$name run=${BASH_REMATCH[2]}/$name/run
[ -n "$compute" ] || fail "--compute-type: missing, expected such as v6e-16"
[[ $samplers =~ ^[0-9]+$ ]] || fail "--samplers: got $samplers, expected a number"
[ $# -gt 0 ] || fail "got no flags of the learner after --, expected at least --config=FILE"

do_run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
submit() { # NAME COMPUTE_TYPE COMMAND FLAG...; one process serves all chips of a host
  local flags=("${shared[@]}" "${@:4}")
  [[ $2 != tpu7x* ]] || flags+=(--gke-disable-parallel-containers)
  [ -z "$out" ] || flags+=(--dry-run-out="$out/$1.yaml")
  do_run gcluster job submit --name="$1" --compute-type="$2" --command="$3" "${flags[@]}"
}
address=$name-main-job-0-0.$name # gcluster's JobSet calls its only part main-job
[ -e "$certs/token" ] || do_run "$(dirname "$0")/make_certs.sh" "$certs" "$address"
if [[ $source == gs://* ]]; then # files that grow are nothing for a bucket
  run=/tmp/run
  [ -n "$out" ] || do_run gcloud storage cp "$certs"/{ca,server,client}.pem "$certs"/{server,client}.key "$certs/token" "$source/$name/certs/"
fi
[ -z "$out" ] || do_run mkdir -p "$out"
submit "$name" "$compute" "exec /app/launch/pod.sh $run --checkpoint_dir=$home/checkpoints --weights_dir=$home/weights \
--listen=0.0.0.0:50051 --tls_cert=$home/certs/server.pem --tls_key=$home/certs/server.key \
--tls_client_ca=$home/certs/ca.pem --token_file=$home/certs/token $(printf '%q ' "$@")" \
  "${slice[@]}" --restarts=20 --grace-period=10m
for ((i = 0; i < samplers; i++)); do
  submit "$name-s$i" "$sampler_compute" "exec offpolicy-rl sampler --learner=$address:50051 --name=$name-s$i \
--weights_dir=$home/weights --tls_ca=$home/certs/ca.pem --tls_cert=$home/certs/client.pem \
--tls_key=$home/certs/client.key --token_file=$home/certs/token --patience=600" --restarts=1000
done
