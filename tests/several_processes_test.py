"""A learner of several processes computes what one process does, and survives the loss of one."""

import shutil
import signal
import socket

import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.model import policy
from offpolicy_rl.roles import build, build_learner
from tests import run_system as system
from tests.conftest import XLA_FLAGS

pytestmark = pytest.mark.long
STEPS = 30
DEVICES = 2
KEPT = 4  # the step from which the run of one process is gone on with by four
SETTINGS = [
  "--config=configs/test.py",
  "--config.warm_start.steps=40",
  f"--config.learner.steps={STEPS}",
  "--config.evaluation.every=0",
  "--config.evaluation.problems=2",
  f"--config.checkpoint.every={KEPT}",
  "--config.checkpoint.keep=40",
  "--config.lag.mode=fixed",
  "--config.lag.max_lag=2",
  f"--config.mesh.data={DEVICES}",
  # Adam divides by the size of a gradient: noise in tiny ones must not become a whole step.
  "--config.learner.adam_eps=1e-3",
]


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def start_learner(launch, run_dir, count: int, *more: str, devices: int = DEVICES) -> list:
  """The processes of one learner, each with its part of the devices."""
  shared = ["learner", *SETTINGS, f"--run_dir={run_dir}", f"--weights_dir={run_dir}-weights", *more]
  flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={devices // count}"
  if count > 1:
    shared += [
      f"--checkpoint_dir={run_dir}-checkpoints",
      f"--coordinator=127.0.0.1:{free_port()}",
      f"--num_processes={count}",
    ]
  own = lambda i: [f"--process_id={i}"] if count > 1 else []
  return [launch(*shared, *own(i), XLA_FLAGS=flags) for i in range(count)]


def start_sampler(launch, run_dir):
  system.wait_for((run_dir / "address").exists, 90, "the learner's address")
  address = (run_dir / "address").read_text()
  return launch("sampler", f"--learner={address}", f"--weights_dir={run_dir}-weights")


def finish(processes) -> None:
  for process in processes:
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output


def outcome(run_dir) -> tuple[int, dict, dict]:
  """(steps, what was sampled and learned in each of them, the parameters after the last one)."""
  rows = system.train_rows(run_dir)
  course = {name: [row[name] for row in rows] for name in ("reward", "tokens", "entropy")}
  config = config_lib.from_json((run_dir / "config.json").read_text())
  step, params = build_learner.newest_params(run_dir, build.make_policy(config, None).model)
  return step, course, policy.flatten(params)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The directory of a run of one process with all devices, and a checkpoint of every step."""
  run_dir = tmp_path_factory.mktemp("alone") / "run"
  with system.processes() as launch:
    learner = start_learner(launch, run_dir, 1, "--config.checkpoint.every=1")
    finish([*learner, start_sampler(launch, run_dir)])
  return run_dir


def assert_same_bits(run_dir, alone):
  """Two devices have one sum only, whoever they belong to."""
  (step, course, params), (_, expected_course, expected) = outcome(run_dir), outcome(alone)
  assert step == len(course["reward"]) == STEPS and sum(course["reward"]) > 0
  assert course == expected_course
  system.assert_identical(params, expected)


def copy_until(step: int, alone, run_dir) -> None:
  """The run as it was after so many steps, as far as checkpoints tell."""
  shutil.copytree(alone, run_dir)
  for folder in (run_dir / "checkpoints" / "steps").iterdir():
    if int(folder.name) > step:
      shutil.rmtree(folder)


def test_four_processes_go_on_with_the_run_of_one(tmp_path, alone):
  """From a checkpoint of it, with the groups that it had: only the order of sums differs.

  One of them is told to stop: all do, with a checkpoint of the same step.
  """
  run_dir, checkpoints = tmp_path / "run", tmp_path / "run-checkpoints"
  copy_until(KEPT, alone, run_dir)
  (run_dir / "address").unlink()
  (run_dir / "checkpoints").rename(checkpoints)
  with system.processes() as launch:
    learner = start_learner(launch, run_dir, 4, "--resume", "--config.mesh.data=4", devices=4)
    sampler = start_sampler(launch, run_dir)
    theirs = checkpoints / "steps" / str(KEPT + 4)
    system.wait_for(theirs.exists, 120, "a checkpoint of the four")
    learner[2].send_signal(signal.SIGTERM)
    finish([*learner, sampler])
  made, course, params = outcome(run_dir)
  assert KEPT + 4 <= made == len(course["reward"]) < STEPS
  copy_until(made, alone, tmp_path / "alone")
  _, expected_course, expected = outcome(tmp_path / "alone")
  assert course["reward"] == expected_course["reward"][:made]
  np.testing.assert_allclose(course["entropy"], expected_course["entropy"][:made], rtol=1e-5)
  for name, array in expected.items():
    tolerance = 1e-5 * np.abs(array).max()
    np.testing.assert_allclose(params[name], array, rtol=1e-5, atol=tolerance, err_msg=name)


def begun(launch, run_dir, rows: int, *more: str):
  """(processes of a learner, its sampler) once so many steps are made."""
  (run_dir / "address").unlink(missing_ok=True)
  learner = start_learner(launch, run_dir, 2, *more)
  sampler = start_sampler(launch, run_dir)
  system.wait_for(lambda: len(system.train_rows(run_dir)) >= rows, 120, f"{rows} steps")
  return learner, sampler


def test_whoever_is_killed_all_stop_and_go_on_together(tmp_path, alone):
  run_dir = tmp_path / "run"
  with system.processes() as launch:
    for rows, victim in ((5, 1), (9, 0)):
      learner, sampler = begun(launch, run_dir, rows, *(["--resume"] if rows > 5 else []))
      learner[victim].kill()
      output, _ = learner[1 - victim].communicate(timeout=60)
      assert learner[1 - victim].returncode not in (0, None), output
      sampler.kill()
    learner, sampler = begun(launch, run_dir, 9, "--resume")
    finish([*learner, sampler])
  assert_same_bits(run_dir, alone)


def test_different_configurations_are_refused(tmp_path):
  run_dir = tmp_path / "run"
  port = free_port()
  shared = [
    "learner",
    *SETTINGS,
    f"--run_dir={run_dir}",
    f"--weights_dir={run_dir}-weights",
    f"--coordinator=127.0.0.1:{port}",
    "--num_processes=2",
  ]
  flags = f"{XLA_FLAGS} --xla_force_host_platform_device_count={DEVICES // 2}"
  with system.processes() as launch:
    both = [
      launch(*shared, f"--process_id={i}", f"--config.seed={i}", XLA_FLAGS=flags) for i in (0, 1)
    ]
    for process in both:
      output, _ = process.communicate(timeout=90)
      assert process.returncode == 1 and "process 1 has another configuration" in output, output
  assert not (run_dir / "checkpoints").exists()


def test_a_teacher_judges_the_same_for_one_process_and_for_two(tmp_path, alone):
  """Each process reads the whole teacher and keeps its part."""
  more = ["--config.objective.name=distill", f"--config.teacher.checkpoint={alone}"]
  more += ["--config.warm_start.steps=5", "--config.learner.steps=6", "--config.mesh.data=1"]
  taught = []
  for count in (1, 2):
    run_dir = tmp_path / str(count)
    with system.processes() as launch:
      learner = start_learner(launch, run_dir, count, *more, f"--config.mesh.fsdp={DEVICES}")
      finish([*learner, start_sampler(launch, run_dir)])
    taught.append(outcome(run_dir)[2])
    assert len([row["teacher/kl"] for row in system.train_rows(run_dir)]) == 6
  system.assert_identical(*taught)


def test_candidates_reach_every_process(tmp_path):
  """The sampler's likeliest tokens lie beside the batch: with their rows, split like those."""
  more = ["--config.objective.name=score_centering_tis", "--config.sampler.top_logprobs=5"]
  more += ["--config.learner.layout=shared", "--config.learner.microbatches=2"]
  more += ["--config.warm_start.steps=5", "--config.learner.steps=8"]
  found = []
  for count in (1, 2):
    run_dir = tmp_path / str(count)
    with system.processes() as launch:
      learner = start_learner(launch, run_dir, count, *more)
      finish([*learner, start_sampler(launch, run_dir)])
    found.append((outcome(run_dir)[2], [r["candidate_mass"] for r in system.train_rows(run_dir)]))
  (alone, mass), (together, theirs) = found
  system.assert_identical(together, alone)
  assert mass == theirs and len(mass) == 8 and all(0 < x < 1 for x in mass)
