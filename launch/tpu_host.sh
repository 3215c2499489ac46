#!/usr/bin/env bash
# tpu_host.sh COMMAND: what launch/tpu_vm.sh and launch/tpu_mig.sh run on every host, in the home directory.
#
#   setup EXTRAS SHARED         installs the project, mounts what the hosts share
#   worker                      prints this host's number in its slice and its address
#   learner SHARED NAME FLAG... starts a process of the learner
#   sampler SHARED NAME FLAG... starts a sampler
#   logs, stop                  of it
#
# The role is a systemd service: it outlives the ssh session, and gets SIGTERM when the machine is
# preempted; its verifiers do not (KillMode). The learner's processes that fail start again together.
set -euo pipefail
if [ "${1:---help}" = --help ]; then sed -n '2,12s/^# \?//p' "$0"; exit; fi
project=$HOME/offpolicy_rl shared=$HOME/shared certs=$HOME/certs unit=offpolicy-rl
start() { # ROLE STOP_SECONDS FLAG...
  sudo systemctl reset-failed "$unit" 2> /dev/null || true # an earlier one's memory
  sudo systemd-run --unit="$unit" --uid="$(id -un)" --setenv=HOME="$HOME" --working-directory="$project" \
    --property=KillMode=mixed --property=TimeoutStopSec="$2" --property=LimitMEMLOCK=infinity \
    --property=LimitNOFILE=1048576 --property=Restart=on-failure --property=RestartSec=30 \
    --property=RestartPreventExitStatus=2 --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10 \
    "$project/.venv/bin/offpolicy-rl" "$1" "${@:3}"
}
mounted() { # SHARED: a bucket, or HOST:/EXPORT
  mkdir -p "$shared"
  if mountpoint -q "$shared"; then return; fi
  case $1 in
    *:/*) sudo mount -t nfs "$1" "$shared" ;;
    # Checkpoints are directories that get their names at the end; only a hierarchical bucket does that at once.
    *) gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "$shared" ;;
  esac
}
metadata() { curl -fsS -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/$1"; }
need_mount() { # SHARED
  case $1 in
    *:/*) command -v mount.nfs > /dev/null || { sudo apt-get update -q && sudo apt-get install -qy nfs-common; } ;;
    *) command -v gcsfuse > /dev/null || {
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
        | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      sudo apt-get update -q && sudo apt-get install -qy gcsfuse
    } ;;
  esac
}
cd "$project"
case $1 in
  setup)
    chmod 600 "$certs"/*
    launch/install.sh --get-python .venv "$2"
    need_mount "$3" && mounted "$3" ;;
  learner)
    mounted "$2" && mkdir -p "$shared/$3"
    run=$HOME/run-$3 # a bucket is no place for files that grow
    if [[ $2 == *:/* ]]; then # NFS: the run outlives this machine, all but the groups that wait
      run=$shared/$3/run
      mkdir -p "$run" "$HOME/groups-$3" && { ln -sn "$HOME/groups-$3" "$run/groups" 2> /dev/null || [ -L "$run/groups" ]; }
    fi
    start learner 600 --run_dir="$run" --checkpoint_dir="$shared/$3/checkpoints" \
      --weights_dir="$shared/$3/weights" --resume --tls_cert="$certs/server.pem" \
      --tls_key="$certs/server.key" --tls_client_ca="$certs/ca.pem" --token_file="$certs/token" "${@:4}" ;;
  sampler)
    mounted "$2"
    start sampler 60 --weights_dir="$shared/$3/weights" --tls_ca="$certs/ca.pem" --tls_cert="$certs/client.pem" \
      --tls_key="$certs/client.key" --token_file="$certs/token" --tls_server_name=learner --patience=600 "${@:4}" ;;
  worker)
    number=$(metadata attributes/worker-id || metadata attributes/agent-worker-number)
    address=$(metadata network-interfaces/0/ip)
    echo "$number $address" ;;
  logs) sudo journalctl --unit="$unit" --lines=100 --no-pager --output=cat ;;
  stop) sudo systemctl stop "$unit" ;;
  *) echo "tpu_host.sh: got $1, expected setup, worker, learner, sampler, logs or stop" >&2; exit 2 ;;
esac
