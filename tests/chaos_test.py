"""A short version of benchmarks/chaos.py: what it does to a run, and that its audit can fail."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import chaos, chaos_faults, chaos_world
from tests import run_system


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  return chaos.study(
    faults=4, seed=3, mode="fixed", samplers=2, folder=tmp_path_factory.mktemp("c")
  )


@pytest.mark.long
@pytest.mark.timeout(500)
def test_nothing_is_lost_doubled_or_bent_by_faults(report):
  assert chaos.passed(report), report
  assert sum(report["faults"].values()) == 4
  assert report["audit"]["accepted_groups_seen"] > 200


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["fixed", "async"])
def test_an_environment_that_does_everything_wrong_costs_its_own_episodes_only(tmp_path, mode):
  report = chaos.study(faults=2, seed=4, mode=mode, samplers=2, world=True, folder=tmp_path)
  assert chaos.passed(report), report
  assert report["world_faults"].keys() == chaos_world.FAULTS.keys()
  assert report["episodes"]["failed"] > 10 and report["episodes"]["done"] > 20


def small_run(folder):
  """What three steps of two groups leave behind, lag 0, every group acknowledged."""
  run = types.SimpleNamespace(run_dir=folder / "run", logs=folder / "logs", megabytes=[9, 9, 9])
  run.run_dir.mkdir()
  run.logs.mkdir()
  rows = [
    {"step": s, "versions": [0, 0], "digests": [f"{s:015x}{g:x}" for g in range(2)]}
    for s in range(3)
  ]
  write_rows(run, rows)
  said = [
    f"train/{r['step']}/{g} {d}: accepted\n" for r in rows for g, d in enumerate(r["digests"])
  ]
  (run.logs / "sampler-0.log").write_text("".join(said))
  (run.run_dir / "metrics.jsonl").write_text(
    "".join(json.dumps({"kind": "train", "step": s}) + "\n" for s in range(3))
  )
  (run.run_dir / "ledger.json").write_text('{"queued": 0, "out": 0, "waiting": 0}')
  return run, rows


def write_rows(run, rows):
  lines = [{"config": {}}, *rows]
  (run.run_dir / "lag_schedule.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))


DAMAGE = {
  None: lambda rows: None,
  "accepted_groups_lost": lambda rows: rows[1]["digests"].__setitem__(0, "f" * 16),
  "groups_doubled": lambda rows: rows.append(rows[2]),
  "steps_missing_or_doubled": lambda rows: rows.pop(),
  "over_the_lag_bound": lambda rows: rows[2]["versions"].__setitem__(0, 3),
  "not_the_fixed_lag": lambda rows: rows[2]["versions"].__setitem__(0, 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_audit_sees_what_it_is_to_see(tmp_path, name):
  run, rows = small_run(tmp_path)
  DAMAGE[name](rows)
  write_rows(run, rows)
  found = chaos.audit(run, mode="fixed", steps=3, reference=None)
  assert found["accepted_groups_seen"] == 6
  assert (found[name] > 0) if name else chaos.passed({"audit": found})
  assert chaos.passed({"audit": found}) == (name is None)


def test_the_audit_sees_open_tickets_and_other_bits(tmp_path):
  run, _ = small_run(tmp_path)
  (run.run_dir / "ledger.json").write_text('{"queued": 0, "out": 1, "waiting": 0}')
  found = chaos.audit(run, mode="fixed", steps=3, reference=None)
  assert found["tickets_left"] == 1 and not chaos.passed({"audit": found})
  a = {"w": np.zeros(3), "b": np.ones(2)}
  assert chaos.differences(a, {"w": np.zeros(3), "b": np.ones(2)}) == 0
  assert chaos.differences(a, {"w": np.zeros(3), "b": np.array([1, 1 + 1e-12])}) == 1
  assert chaos.differences(a, {"w": np.zeros(3)}) == 1


def test_the_audit_sees_memory_that_grows(tmp_path):
  run, _ = small_run(tmp_path)
  run.megabytes = [900, 1000, 1000, 1300]
  assert chaos.audit(run, mode="fixed", steps=3, reference=None)["memory_grew"] == 1
  pids = [os.getpid()]
  held = chaos_faults.megabytes(pids)
  child = subprocess.Popen(
    [sys.executable, "-c", "x = bytearray(b'x') * 200_000_000; input()"], stdin=-1
  )
  try:
    run_system.wait_for(lambda: chaos_faults.megabytes(pids) > held + 150, 30, "the child's memory")
  finally:
    child.kill()
    child.wait()
