"""launch/slurm.sh as the job's shell, against stand-ins for srun and scontrol."""

import os
import shlex

import pytest

from tests.launch.desk import LAUNCH, accepted, ok

JOB = {
  "SLURM_JOB_ID": "7",
  "SLURM_JOB_NUM_NODES": "5",
  "SLURM_GPUS_ON_NODE": "4",
  "SLURM_CPUS_ON_NODE": "64",
  "SLURM_JOB_NODELIST": "n[1-5]",
}
SRUN = [
  "--nodes",
  "--ntasks",
  "--relative",
  "--ntasks-per-node",
  "--gpu-bind",
  "--cpus-per-task",
  "--kill-on-bad-exit",
]
SBATCH = {
  "job-name",
  "nodes",
  "gpus-per-node",
  "exclusive",
  "requeue",
  "open-mode",
  "output",
  "signal",
}
PROGRAM = ".venv/bin/offpolicy-rl"


@pytest.fixture
def slurm(desk, tmp_path):
  """Runs the script in a job of five nodes with four GPUs each."""
  (tmp_path / "certs").mkdir()
  (tmp_path / "certs" / "token").touch()
  desk.link("realpath")
  desk.stub("srun", {"": SRUN})
  desk.stub("scontrol", {"show hostnames": []}, {"hostnames n[1-5]": ["n1\nn2\nn3\nn4\nn5"]})
  settings = JOB | {"LOCAL": str(tmp_path / "disk")}
  return lambda *words, **env: desk.run("slurm.sh", *words, cwd=tmp_path, **settings | env)


def test_steps_of_a_job(desk, slurm, tmp_path):
  run_dir = tmp_path / "run"
  words = ["--learner_nodes=2", f"--run_dir={run_dir}", "--config=configs/test.py"]
  done = slurm(*words)
  assert done.returncode == 0, done.stderr
  first, *steps = desk.argvs("srun")
  disk = f"{tmp_path}/disk/offpolicy-rl{str(run_dir).replace('/', '-')}"
  assert first == ["--nodes=1", "--ntasks=1", "--relative=0", "mkdir", "-p", disk]
  assert os.readlink(run_dir / "groups") == disk
  ats = [step.index(PROGRAM) for step in steps]
  by_role = {
    step[at + 1]: (set(step[:at]), accepted(step[at + 1 :]))
    for step, at in zip(steps, ats, strict=True)
  }
  step, trains = by_role["learner"]
  assert {"--nodes=2", "--relative=0", "--ntasks=8", "--ntasks-per-node=4"} <= step
  assert {"--cpus-per-task=16", "--gpu-bind=none"} <= step
  assert (trains.coordinator, trains.resume, trains.config) == ("auto", True, "configs/test.py")
  assert trains.run_dir == str(run_dir) and trains.checkpoint_dir == f"{run_dir}-checkpoints"
  step, samples = by_role["sampler"]
  assert {"--nodes=3", "--relative=2", "--ntasks=3", "--ntasks-per-node=1"} <= step
  assert "--cpus-per-task=64" in step
  assert samples.learner == f"n1:{trains.listen.split(':')[1]}"
  assert samples.weights_dir == trains.weights_dir and samples.tls_server_name == "learner"


def test_a_dry_run_prints_the_steps_and_runs_none(desk, slurm, tmp_path):
  words = ["--learner_nodes=2", f"--run_dir={tmp_path}/run", '--config.task.mixture={"a b": 1}']
  printed = [shlex.split(line)[1:] for line in ok(slurm("--dry-run", *words)).splitlines()]
  assert desk.argvs("srun") == [] and not (tmp_path / "run").exists()
  ok(slurm(*words))
  assert sorted(printed) == sorted(desk.argvs("srun"))


@pytest.mark.parametrize(
  ("failing", "code"), [("learner", 1), ("sampler", 0)], ids=["learner", "sampler"]
)
def test_the_job_fails_with_the_learner_only(desk, slurm, tmp_path, failing, code):
  """A sampler that is lost is missed by nobody."""
  program = desk.folder / "srun"
  program.write_text(f'#!/usr/bin/env bash\n[[ " $* " != *" {failing} "* ]]\n')
  assert slurm(f"--run_dir={tmp_path}/run", "--config=x.py").returncode == code


@pytest.mark.parametrize(
  ("arguments", "env", "message"),
  [
    ([], {}, "--run_dir: missing"),
    (["--run_dir=r"], {"SLURM_JOB_ID": ""}, "no Slurm job, expected: sbatch"),
    (["--run_dir=r", "--learner_nodes=5"], {}, "--learner_nodes: got 5 of 5 nodes"),
    (["--run_dir=r", "--learner_nodes=two"], {}, "--learner_nodes: got two"),
    (["--run_dir=r"], {"SLURM_GPUS_ON_NODE": ""}, "the job has no GPUs"),
    (["--run_dir=r"], {"CERTS": "none"}, "CERTS: no none/token"),
  ],
)
def test_what_is_missing_is_named(desk, slurm, arguments, env, message):
  done = slurm(*arguments, **env)
  assert done.returncode == 2 and message in done.stderr, done.stderr
  assert desk.argvs("srun") == []


def test_slurm_signals_the_processes_and_not_the_shell():
  """`B:` would be for the shell, whose srun kills its tasks when it gets SIGTERM."""
  lines = (LAUNCH / "slurm.sh").read_text().splitlines()
  found = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]
  options = dict(option.partition("=")[::2] for option in found)
  assert options["signal"] == "TERM@300" and set(options) == SBATCH
  commands = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
  assert commands[0] > max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
