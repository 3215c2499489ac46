#!/usr/bin/env bash
# gke.sh [--dry-run] COMMAND VALUES: a run on GKE, as the file VALUES says (copy launch/gke/values.yaml).
#
#   secrets CERTS   gives certificates and token to the cluster; CERTS is made when it is not there
#   start           learner and samplers begin, or go on from the last checkpoint
#   logs [sampler]  follows the learner's first process, or all samplers
#   stop            samplers push what they have begun, the learner leaves a checkpoint
#   delete          stop, and the secrets go, too; what is on the shared claim stays
#
# --dry-run prints every command and runs none. Needs kubectl with a cluster that has JobSet, and a
# Python with this project's packages (PYTHON, default .venv/bin/python). When the run is over, samplers
# look for another one until `stop`.
set -euo pipefail
fail() { echo "gke.sh: $1" >&2; exit 2; }
dry=''
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
command=${1:---help} values=${2:-} more=${3:-} here=$(dirname "$0")
case $command in
  --help) sed -n '2,12s/^# \?//p' "$0"; exit ;;
  secrets | start | logs | stop | delete) ;;
  *) fail "got $command, expected secrets, start, logs, stop or delete" ;;
esac
[ -n "$values" ] || fail "VALUES: missing, expected a file such as launch/gke/values.yaml"
python=${PYTHON:-.venv/bin/python}
value() { "$python" "$here/render.py" "$values" --print="$1"; }
name=$(value name) namespace=$(value namespace)

run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
kube() { run kubectl --namespace="$namespace" "$@"; }
secret() { # NAME FILE...: the files of CERTS, as they are now
  kube delete secret "$1" --ignore-not-found
  kube create secret generic "$1" "${@:2}"
}
stop() { # --cascade: waits until the pods are gone
  kube delete deployment "$name-sampler" --cascade=foreground --ignore-not-found
  kube delete jobset "$name" --cascade=foreground --ignore-not-found
}
case $command in
  secrets)
    [ -n "$more" ] || fail "CERTS: missing, expected the directory of launch/make_certs.sh"
    [ -e "$more/token" ] || run "$here/../make_certs.sh" "$more" "$(value address)"
    secret "$name-learner" --from-file="$more"/{ca.pem,server.pem,server.key,token}
    secret "$name-sampler" --from-file="$more"/{ca.pem,client.pem,client.key,token} ;;
  start)
    manifest=$("$python" "$here/render.py" "$values") # before anything starts
    if [ -n "$dry" ]; then echo "$python $here/render.py $values | kubectl apply -f -"; exit; fi
    kubectl apply -f - <<< "$manifest" ;;
  logs)
    if [ -n "$more" ]; then kube logs --selector="run=$name,role=$more" --follow --prefix --max-log-requests=50
    else kube logs "job/$name-learner-0" --follow; fi ;;
  stop) stop ;;
  delete)
    stop
    kube delete secret "$name-learner" "$name-sampler" --ignore-not-found ;;
esac
