"""Learners and samplers as real processes: starting, watching, killing, reading what they left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from offpolicy_rl.observe import metrics
from tests.conftest import ROOT


def start(*arguments: str, cwd=ROOT, **environment: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "offpolicy_rl.cli.main", *arguments],
    cwd=cwd,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


@contextlib.contextmanager
def processes():
  """Whatever is started through this ends with the test."""
  started = []

  def launch(*arguments, **environment):
    started.append(start(*arguments, **environment))
    return started[-1]

  try:
    yield launch
  finally:
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def wait_for(condition, seconds: float, what: str):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, f"waited {seconds} s for {what}"
    time.sleep(0.05)


def train_rows(run_dir):
  return [row for row in metrics.read(run_dir) if row["kind"] == "train"]


def ledger_of(run_dir) -> dict:
  return json.loads((run_dir / "ledger.json").read_text())


def assert_identical(a: dict, b: dict):
  """The same names and bits."""
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
