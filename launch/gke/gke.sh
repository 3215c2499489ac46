#!/usr/bin/env bash
# gke.sh [--dry-run] COMMAND VALUES: a run on GKE, as the file VALUES says (copy launch/gke/values.yaml).
#
#   pools           makes the node pools, with spot or reserved TPUs as VALUES says
#   queue           makes the queue of Kueue, with as much as this run needs
#   sandbox         makes the pods for the policy's programs, with agent-sandbox
#   secrets CERTS   gives certificates and token to the cluster; CERTS is made when it is not there
#   start           learner and samplers begin, or go on from the last checkpoint
#   scale N         from now on N samplers
#   logs [sampler]  follows the learner's first process, or all samplers
#   stop            samplers push what they have begun, the learner leaves a checkpoint
#   delete          stop, and the secrets go, too; what is shared stays, and so do the node pools
#
# --dry-run prints every command and runs none. Needs kubectl with a cluster that has JobSet (gcloud for
# pools), and a Python with this project's packages (PYTHON, default .venv/bin/python). When the run is
# over, samplers look for another one until `stop`.
set -euo pipefail
fail() { echo "gke.sh: $1" >&2; exit 2; }
dry=''
words=() # without --dry-run, wherever it stands
for word; do if [ "$word" = --dry-run ]; then dry=1; else words+=("$word"); fi; done
set -- "${words[@]}"
command=${1:---help} values=${2:-} more=${3:-} here=$(dirname "$0")
case $command in
  --help) sed -n '2,16s/^# \?//p' "$0"; exit ;;
  pools | queue | sandbox | secrets | start | scale | logs | stop | delete) ;;
  *) fail "got $command, expected pools, queue, sandbox, secrets, start, scale, logs, stop or delete" ;;
esac
[ -n "$values" ] || fail "VALUES: missing, expected a file such as launch/gke/values.yaml"
case $command:$more in
  secrets:* | scale:* | logs:sampler | *:) ;;
  *) fail "$command: got $more, expected nothing behind VALUES, or logs sampler" ;;
esac
rendered() { "${PYTHON:-.venv/bin/python}" "$here/render.py" "$values" "$@"; }
found=$(rendered --print=name,namespace,address)
read -r name namespace address <<< "$found"

run() { # prints the command in a dry run, else runs it
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
kube() { run kubectl --namespace="$namespace" "$@"; }
apply() { # PART
  local manifest
  manifest=$(rendered --part="$1") # before anything starts
  if [ -n "$dry" ]; then echo "$here/render.py $values --part=$1 | kubectl apply -f -"; return; fi
  kubectl apply -f - <<< "$manifest"
}
secret() { # NAME FILE...: the files of CERTS, as they are now
  kube delete secret "$1" --ignore-not-found
  kube create secret generic "$1" "${@:2}"
}
stop() { # --cascade: waits until the pods are gone
  kube delete deployment "$name-sampler" --cascade=foreground --ignore-not-found
  kube delete jobset "$name" --cascade=foreground --ignore-not-found
}
case $command in
  pools)
    commands=$(rendered --part=pools)
    while read -ra words; do run "${words[@]}" < /dev/null; done <<< "$commands" ;;
  queue | sandbox) apply "$command" ;;
  secrets)
    [ -n "$more" ] || fail "CERTS: missing, expected the directory of launch/make_certs.sh"
    [ -e "$more/token" ] || run "$here/../make_certs.sh" "$more" "$address"
    secret "$name-learner" --from-file="$more"/{ca.pem,server.pem,server.key,token}
    secret "$name-sampler" --from-file="$more"/{ca.pem,client.pem,client.key,token} ;;
  start) apply run ;;
  scale)
    [[ $more =~ ^[0-9]+$ ]] || fail "N: got ${more:-nothing}, expected a number of samplers"
    kube scale deployment "$name-sampler" --replicas="$more" ;;
  logs)
    if [ -n "$more" ]; then kube logs --selector="run=$name,role=$more" --follow --prefix --max-log-requests=50
    else kube logs "job/$name-learner-0" --follow; fi ;;
  stop) stop ;;
  delete)
    stop
    kube delete secret "$name-learner" "$name-sampler" --ignore-not-found ;;
esac
