"""The whole system over real gRPC: equal to a run in one process, learning, and ended by Ctrl-C."""

import json
import pathlib
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from benchmarks import in_process
from offpolicy_rl.model import policy
from offpolicy_rl.observe import catalogue, metrics, watch
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.roles import learner as learner_role
from offpolicy_rl.roles import sampler as sampler_role
from offpolicy_rl.tasks import catalog
from offpolicy_rl.transport import client, protocol, server
from tests.conftest import ROOT
from tests.run_system import assert_identical, processes, run_local, train_rows, wait_for
from tests.transport import learners

STEPS = 20


def small(config, **changes):
  """configs/test.py without warm start and without evaluations on the way."""
  config.warm_start.steps = 0
  config.learner.steps = STEPS
  config.evaluation.every = 0
  config.evaluation.problems = 2
  for key, value in changes.items():
    section, name = key.split("__")
    config[section][name] = value
  return config


def in_one_process(config) -> dict:
  """The last parameters of the run that benchmarks/in_process.py makes: no leases, no wire."""
  run = in_process.Run(config)
  state = run.train(run.warm_start(), lambda version: None)
  return policy.flatten(jax.tree.map(np.array, state.params))


def over_the_wire(
  config,
  run_dir: pathlib.Path,
  samplers: int,
  weights_dir: str | None = None,
  *,
  resume: bool = False,
  vllm: sampler_role.Vllm | None = None,
):
  """The same run through learner, gRPC and samplers in threads of this process."""
  (run_dir / "address").unlink(missing_ok=True)
  stop, result = threading.Event(), {}

  def learn():
    result["state"] = learner_role.run_learner(
      config, run_dir, learner_role.Serving("127.0.0.1:0", weights_dir=weights_dir), resume=resume
    )

  learning = threading.Thread(target=learn)
  learning.start()
  while not (run_dir / "address").exists():
    assert learning.is_alive()
    time.sleep(0.05)
  address = (run_dir / "address").read_text()
  workers = [
    threading.Thread(
      target=sampler_role.run_sampler,
      args=(client.LearnerClient(address, f"s{i}"),),
      kwargs={"stop": stop, "weights_dir": weights_dir, "vllm": vllm},
    )
    for i in range(samplers)
  ]
  for worker in workers:
    worker.start()
  for thread in (learning, *workers):
    thread.join(240)
    assert not thread.is_alive()
  return policy.flatten(jax.tree.map(np.array, result["state"].params))


@pytest.fixture(scope="module")
def without_lag():
  from offpolicy_rl import config as config_lib

  config = small(
    config_lib.load(str(ROOT / "configs" / "test.py")), lag__mode="fixed", lag__max_lag=0
  )
  return in_one_process(config)


@pytest.mark.long
@pytest.mark.parametrize("samplers", [3, 1])
def test_lag_zero_over_the_wire_equals_a_run_in_one_process_bit_for_bit(
  tiny_config, tmp_path, without_lag, samplers
):
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=0)
  assert_identical(over_the_wire(config, tmp_path / "run", samplers), without_lag)
  rows = [r for r in metrics.read(tmp_path / "run") if r["kind"] == "train"]
  assert [r["step"] for r in rows] == list(range(STEPS))
  assert all(r["lag/max"] == 0 for r in rows)
  assert max(r.get("mismatch/max", 0) for r in rows) <= 1e-4


def test_fixed_lag_is_reproducible_and_exact(tiny_config, tmp_path, without_lag):
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=4, warm_start__steps=5)
  found = over_the_wire(config, tmp_path / "a", samplers=2)
  assert_identical(found, in_one_process(config))
  rows = [r for r in metrics.read(tmp_path / "a") if r["kind"] == "train"]
  assert [set(r["lag/histogram"]) for r in rows] == [{str(min(s, 4))} for s in range(STEPS)]
  config.warm_start.steps = 0
  lagged = in_one_process(config)
  assert any(not np.array_equal(lagged[name], without_lag[name]) for name in without_lag)


@pytest.mark.long
def test_candidates_travel_to_the_loss_and_leave_runs_exact(tiny_config, tmp_path):
  """Over the wire, through the learner's disk and a restart: as in one process, to the bit."""
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=2, checkpoint__every=3)
  config.objective.name, config.sampler.top_logprobs = "score_centering_tis", 5
  config.learner.steps = 5
  over_the_wire(config, tmp_path / "run", samplers=2)
  config.learner.steps = 8
  found = over_the_wire(config, tmp_path / "run", samplers=1, resume=True)
  assert_identical(found, in_one_process(config))
  assert all(0 < row["candidate_mass"] < 1 for row in train_rows(tmp_path / "run"))


@pytest.mark.long
def test_groups_without_signal_are_replaced_the_same_way_by_any_number_of_samplers(
  tiny_config, tmp_path
):
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=3, learner__max_refills=2)
  # Less wrong than a fresh policy: all three outcomes occur, signal, none, and spares used up.
  config.warm_start.steps = 60
  first = over_the_wire(config, tmp_path / "a", samplers=2)
  assert_identical(first, over_the_wire(config, tmp_path / "b", samplers=1))
  rows, others = train_rows(tmp_path / "a"), train_rows(tmp_path / "b")
  for row in metrics.read(tmp_path / "a"):
    assert row.keys() - {"kind", "step"} <= catalogue.METRICS[row["kind"]].keys()
  filtered = ("filtered/groups", "filtered/reward", "filtered/by_length")
  for key in (*filtered, "reward", "groups_without_signal"):
    assert [row[key] for row in rows] == [row[key] for row in others]
  assert sum(row["filtered/groups"] for row in rows) > 20
  assert all(
    sum(row["filtered/by_length"].values()) == row["filtered/groups"] <= 16 for row in rows
  )
  assert [set(r["lag/histogram"]) for r in rows] == [{str(min(s, 3))} for s in range(STEPS)]
  ledger = json.loads((tmp_path / "a" / "ledger.json").read_text())
  assert ledger["replaced"] == sum(row["filtered/groups"] for row in rows)
  assert ledger["added"] == ledger["taken"] + ledger["replaced"]
  config.learner.max_refills = 0
  unfiltered = over_the_wire(config, tmp_path / "c", samplers=1)
  without = np.mean([row["groups_without_signal"] for row in train_rows(tmp_path / "c")])
  assert np.mean([row["groups_without_signal"] for row in rows]) < without / 1.5
  assert any(not np.array_equal(first[name], unfiltered[name]) for name in first)


@pytest.mark.long
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_ended(tiny_config, tmp_path):
  """As after a kill, the files tell of steps that no checkpoint has; `resume_test.py` kills."""
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=2, checkpoint__every=3)
  config.learner.max_refills = 1
  config.learner.steps = 8
  expected = over_the_wire(config, tmp_path / "straight", samplers=1)
  config.learner.steps = 5
  over_the_wire(config, tmp_path / "run", samplers=1)
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "steps" / "5")
  config.learner.steps = 8
  assert_identical(over_the_wire(config, tmp_path / "run", samplers=2, resume=True), expected)
  rows, others = train_rows(tmp_path / "run"), train_rows(tmp_path / "straight")
  assert [row["step"] for row in rows] == list(range(8))
  assert [row["reward"] for row in rows] == [row["reward"] for row in others]


@pytest.mark.long
def test_periodic_lag_follows_its_period(tiny_config, tmp_path):
  config = small(tiny_config, lag__mode="periodic", lag__max_lag=5)
  over_the_wire(config, tmp_path / "run", samplers=1)
  rows = [r for r in metrics.read(tmp_path / "run") if r["kind"] == "train"]
  assert [r["lag/max"] for r in rows] == [s % 5 for s in range(STEPS)]


@pytest.mark.long
def test_a_directory_gives_what_the_stream_gives_also_in_bfloat16(tiny_config, tmp_path):
  config = small(tiny_config, lag__mode="fixed", lag__max_lag=3, learner__steps=6)
  config.transport.weights_dtype = "bfloat16"
  streamed = over_the_wire(config, tmp_path / "streamed", 1)
  directory = tmp_path / "weights"
  assert_identical(streamed, over_the_wire(config, tmp_path / "read", 2, str(directory)))
  assert json.loads((directory / "index.json").read_text())["versions"][-1] == 6
  # Sampled from rounded weights, and the audit says so; in float32 it finds less than 1e-4.
  mismatch = [row.get("mismatch/max", 0.0) for row in train_rows(tmp_path / "read")]
  assert 1e-4 < max(mismatch) < 0.1


@pytest.mark.parametrize("in_directory", [False, True])
def test_a_sampler_that_looks_elsewhere_for_weights_is_told(tiny_config, tmp_path, in_directory):
  from offpolicy_rl import config as config_lib

  task = catalog.TASKS[tiny_config.task.name]
  identity = protocol.Identity(
    "s", "run", config_lib.to_json(tiny_config), task.vocabulary.fingerprint, in_directory
  )
  asked = learners.handlers(Ledger(lease_seconds=5), run_finished=lambda: True)
  wire, address = server.start(
    "127.0.0.1:0", identity, asked, None, max_samplers=1, max_message_mb=4
  )
  given, said = (None, "missing; the") if in_directory else (str(tmp_path), "got .*streams its")
  with pytest.raises(sampler_role.RunMismatch, match=f"--weights_dir: {said}"):
    sampler_role.run_sampler(
      client.LearnerClient(address, "lost"), stop=threading.Event(), weights_dir=given
    )
  wire.stop(0).wait()


# ---------------------------------------------------------------- separate processes

LEARNING = (  # configs/test.py, but with enough data to learn from
  "--config.warm_start.stop_loss=0.7",
  "--config.learner.prompts_per_step=16",
  "--config.learner.group_size=8",
  "--config.sampler.slots=128",
  "--config.learner.learning_rate=2e-3",
  "--config.learner.schedule=cosine",
)


@pytest.mark.long
def test_the_reward_rises_with_a_separate_sampler_and_lag(tmp_path):
  output = run_local(
    "--config=configs/test.py",
    f"--run_dir={tmp_path}/run",
    "--config.lag.max_lag=4",
    *LEARNING,
    "--config.learner.steps=150",
    XLA_FLAGS="",
  )
  rows = train_rows(tmp_path / "run")
  rewards = [row["reward"] for row in rows]
  assert len(rewards) == 150
  assert np.mean(rewards[-30:]) > np.mean(rewards[:30]) + 0.1, rewards
  assert max(row["lag/max"] for row in rows) == 4
  assert max(row.get("mismatch/max", 0.0) for row in rows) <= 1e-4
  assert sum(row.get("mismatch/tokens", 0) for row in rows) > 0
  assert rows[0]["compilations"] > 0 and not any(row["compilations"] for row in rows[20:])
  phases = [row["phase"] for row in metrics.read(tmp_path / "run") if row["kind"] == "heldout"]
  assert [p for p in phases if p != "during"] == ["before warm start", "after warm start", "after"]
  groups = metrics.read_lines(tmp_path / "run" / "completions.jsonl")
  assert [group["step"] for group in groups] == [*range(0, 150, 10), 149]
  ratios = lambda group: [abs(x) for c in group["completions"] for x in c["log_ratios"]]
  assert max(ratios(groups[0])) < 1e-3 < max(max(ratios(group)) for group in groups)  # lag 0, more
  report = (tmp_path / "run" / "report.html").read_text()
  assert "Held-out accuracy" in report and "polyline" in report
  assert f"report: {tmp_path}/run/report.html" in output
  assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.long
def test_score_centering_learns_from_lagged_samples(tmp_path):
  """Three seeds went from 0.27, 0.24 and 0.19 to 0.52, 0.70 and 0.50, means of 50 steps."""
  run_local(
    "--config=configs/test.py",
    f"--run_dir={tmp_path}/run",
    "--config.objective.name=score_centering",
    "--config.objective.kappa=0",
    "--config.sampler.top_logprobs=4",
    "--config.lag.mode=fixed",
    "--config.lag.max_lag=4",
    *LEARNING,
    "--config.learner.steps=400",
    XLA_FLAGS="",
  )
  rows = train_rows(tmp_path / "run")
  rewards = [row["reward"] for row in rows]
  assert len(rewards) == 400
  assert np.mean(rewards[-50:]) > np.mean(rewards[:50]) + 0.15, rewards
  assert all(row["lag/max"] == row["lag/mean"] == 4 for row in rows[4:])
  assert all(0.5 < row["candidate_mass"] < 1 for row in rows)


@pytest.mark.long
def test_ctrl_c_leaves_a_checkpoint_and_resume_finishes(tmp_path):
  run_dir = tmp_path / "run"
  with processes() as launch:
    local = launch(
      "local",
      "--config=configs/test.py",
      f"--run_dir={run_dir}",
      "--config.warm_start.steps=40",
      "--config.learner.steps=400",
    )
    wait_for(lambda: len(train_rows(run_dir)) >= 15, 120, "15 steps")
    local.send_signal(signal.SIGINT)
    output, _ = local.communicate(timeout=60)
    assert local.returncode == 130, output
    done = len(train_rows(run_dir))
    assert f"stopped after step {done}" in output and "Traceback" not in output
    assert (run_dir / "checkpoints" / "steps" / str(done)).exists()
    assert (run_dir / "report.html").exists()
    assert watch.read_status(run_dir).ended == "stopped"
    more = launch(
      "local", "--resume", f"--run_dir={run_dir}", f"--config.learner.steps={done + 10}"
    )
    output, _ = more.communicate(timeout=120)
  assert more.returncode == 0, output
  assert len(train_rows(run_dir)) == done + 10
  assert watch.read_status(run_dir).ended == "finished"
