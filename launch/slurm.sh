#!/usr/bin/env bash
#SBATCH --job-name=offpolicy-rl
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=offpolicy-rl-%j.log
#SBATCH --signal=TERM@300
#
# sbatch [SLURM FLAG...] launch/slurm.sh [--dry-run] --learner_nodes=N --run_dir=DIR FLAG...: a run on a GPU cluster.
#
# The first N nodes of the job (default 1) train, one process per GPU, as JAX wants it under Slurm;
# each of the others has one sampler (sampler.data and sampler.tensor say how it uses its GPUs). FLAGs
# are the learner's, such as --config=FILE; the mesh has N x GPUs devices. Start it in the project's
# directory, with DIR in a file system that all nodes share; run again with the same DIR to go on.
# Waiting groups lie on the first node's own disk (LMDB wants that), in LOCAL (default /tmp); a job
# that begins on other nodes has them sampled again.
# --dry-run prints the steps into the job's log and runs none.
# CERTS=DIR (default certs) was made by: launch/make_certs.sh certs learner. VENV: default .venv.
#
# 300 s before the time limit, at preemption, and after `scancel --signal=TERM JOB` every process gets
# SIGTERM: samplers finish their groups, the learner leaves a checkpoint. Without --signal scancel
# waits for as long as the cluster's KillWait only. This script needs no trap: srun kills its tasks when
# it gets SIGTERM itself, and Slurm signals the tasks directly.
set -euo pipefail
fail() { echo "slurm.sh: $1" >&2; exit 2; }
learner_nodes=1 run_dir='' flags=() port=50051 dry=''
for argument in "$@"; do
  case $argument in
    --help) sed -n '11,27s/^# \?//p' "$0"; exit ;;
    --dry-run) dry=1 ;;
    --learner_nodes=*) learner_nodes=${argument#*=} ;;
    --run_dir=*) run_dir=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done
[ -n "${SLURM_JOB_ID:-}" ] || fail "no Slurm job, expected: sbatch launch/slurm.sh ..."
[ -n "$run_dir" ] || fail "--run_dir: missing, expected a directory that all nodes share"
[[ $learner_nodes =~ ^[0-9]+$ ]] || fail "--learner_nodes: got $learner_nodes, expected a number"
samplers=$((SLURM_JOB_NUM_NODES - learner_nodes))
[ "$learner_nodes" -ge 1 ] && [ "$samplers" -ge 1 ] ||
  fail "--learner_nodes: got $learner_nodes of $SLURM_JOB_NUM_NODES nodes, expected one at least for learner and samplers each"
certs=${CERTS:-certs} program=${VENV:-.venv}/bin/offpolicy-rl
[ -e "$certs/token" ] || fail "CERTS: no $certs/token, expected what launch/make_certs.sh $certs learner makes"
gpus=${SLURM_GPUS_ON_NODE:-0}
[ "$gpus" -ge 1 ] || fail "the job has no GPUs, expected --gpus-per-node=N for sbatch"
step() { # prints the step in a dry run, in one piece, else runs it
  if [ -n "$dry" ]; then echo "srun$(printf ' %q' "$@")"; else srun "$@"; fi
}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
full=$(realpath --canonicalize-missing "$run_dir")
groups=${LOCAL:-/tmp}/offpolicy-rl${full//\//-} # no other run's
step --nodes=1 --ntasks=1 --relative=0 mkdir -p "$groups"
if [ -z "$dry" ]; then
  mkdir -p "$run_dir"
  [ -e "$run_dir/groups" ] && [ ! -L "$run_dir/groups" ] || ln -sfn "$groups" "$run_dir/groups"
fi

# Every process sees all GPUs of its node and takes the one of its SLURM_LOCALID.
step --nodes="$learner_nodes" --relative=0 --ntasks=$((learner_nodes * gpus)) \
  --ntasks-per-node="$gpus" --gpu-bind=none --cpus-per-task=$((SLURM_CPUS_ON_NODE / gpus)) --kill-on-bad-exit=1 \
  "$program" learner --coordinator=auto --run_dir="$run_dir" --checkpoint_dir="$run_dir-checkpoints" \
  --weights_dir="$run_dir-weights" --resume --listen="0.0.0.0:$port" --tls_cert="$certs/server.pem" \
  --tls_key="$certs/server.key" --tls_client_ca="$certs/ca.pem" --token_file="$certs/token" "${flags[@]}" &
learner=$!
step --nodes="$samplers" --relative="$learner_nodes" --ntasks="$samplers" \
  --ntasks-per-node=1 --gpu-bind=none --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 \
  "$program" sampler --learner="$first:$port" --weights_dir="$run_dir-weights" --patience=600 \
  --tls_ca="$certs/ca.pem" --tls_server_name=learner --tls_cert="$certs/client.pem" \
  --tls_key="$certs/client.key" --token_file="$certs/token" &
wait "$learner" # a failure ends the job, and with it the samplers
wait            # the learner has told them that the run is over
