"""W&B, MLflow and Trackio themselves, offline: a run that is killed and resumed, a sweep, failures.

Their packages are in an environment of their own: make .venv-trackers/.installed
"""

import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.request

import pytest

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, trace
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-trackers" / "bin" / "python"
pytestmark = [
  pytest.mark.long,
  pytest.mark.timeout(900),
  pytest.mark.skipif(
    not (ROOT / ".venv-trackers" / ".installed").exists(),
    reason="the packages of the trackers are missing: make .venv-trackers/.installed",
  ),
]
FILES = {"config.json", "report.html", "completions.jsonl"}


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
  """An environment in which trackers write below the test's directory only."""
  kept = {name: x for name, x in os.environ.items() if not name.startswith(("WANDB", "MLFLOW"))}
  return kept | {
    "HOME": str(tmp_path / "home"),
    "WANDB_MODE": "offline",
    "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    "TRACKIO_DIR": str(tmp_path / "trackio"),
    "PYTHONPATH": str(ROOT),
  }


def python(*arguments: str, env: dict[str, str], cwd) -> subprocess.CompletedProcess:
  return subprocess.run(
    [PYTHON, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=500
  )


def session(run_dir, env, **plan) -> subprocess.CompletedProcess:
  run_dir.mkdir(exist_ok=True)
  (run_dir.parent / "home").mkdir(exist_ok=True)
  module = "tests.observe.tracked_session"
  return python("-m", module, str(run_dir), json.dumps(plan), env=env, cwd=run_dir.parent)


# ------------------------------------------------------------------ what the packages kept


def from_wandb(run_dir) -> tuple[list[dict], dict]:
  """(history, facts of the run) of its only record that `wandb sync` would find."""
  [folder] = (run_dir / "wandb").glob("offline-run-*")
  [file] = folder.glob("*.wandb")
  code = """
import json, pathlib, sys
from wandb.proto import wandb_internal_pb2 as pb
data, at, part = pathlib.Path(sys.argv[1]).read_bytes(), 7, b""  # a log of LevelDB after 7 bytes
history, facts = [], {"artifacts": []}
while at + 7 <= len(data):
  if 32768 - at % 32768 < 7:
    at += 32768 - at % 32768
  length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
  part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
  if kind not in (1, 4):
    continue
  record, part = pb.Record.FromString(part), b""
  which = record.WhichOneof("record_type")
  if which == "history":
    row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
    history.append(row | {"_step": record.history.step.num})
  elif which == "run":
    run = record.run
    facts |= {"id": run.run_id, "group": run.run_group, "name": run.display_name}
    facts["config"] = {i.key or "/".join(i.nested_key): i.value_json for i in run.config.update}
  elif which == "request" and record.request.WhichOneof("request_type") == "log_artifact":
    artifact = record.request.log_artifact.artifact
    facts["artifacts"] += [entry.path for entry in artifact.manifest.contents]
  elif which == "artifact":
    facts["artifacts"] += [entry.path for entry in record.artifact.manifest.contents]
print(json.dumps([history, facts]))
"""
  done = subprocess.run([PYTHON, "-c", code, file], capture_output=True, text=True, check=True)
  history, facts = json.loads(done.stdout)
  return history, facts


def from_mlflow(tmp_path) -> tuple[list[dict], list[dict]]:
  """([metric, step, value], facts by run) of the database."""
  with sqlite3.connect(tmp_path / "mlflow.db") as database:
    found = database.execute("select key, step, value from metrics order by timestamp, step")
    values = [dict(zip(("key", "step", "value"), row, strict=True)) for row in found]
    runs = []
    for run_id, status, name in database.execute("select run_uuid, status, name from runs"):
      tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
      params = dict(database.execute("select key, value from params where run_uuid = ?", (run_id,)))
      runs.append({"id": run_id, "status": status, "name": name, "tags": tags, "params": params})
  return values, runs


def from_trackio(tmp_path, project: str = "offpolicy-rl") -> list[dict]:
  """The rows of the database, with their run, in order."""
  [file] = (tmp_path / "trackio").glob(f"{project}*.db")
  with sqlite3.connect(file) as database:
    rows = database.execute("select run_name, step, metrics from metrics order by id")
    return [{"run": run, "_step": step, **json.loads(text)} for run, step, text in rows]


def by_step(rows: list[dict], kind: str, name: str) -> dict[int, list[float]]:
  found = collections.defaultdict(list)
  for row in rows:
    if f"{kind}/step" in row and name in row:
      found[int(row[f"{kind}/step"])].append(row[name])
  return dict(found)


# ------------------------------------------------------------------ the tests


REWARDS = {step: [float(step)] for step in range(8)} | {8: [8.5], 9: [9.5]}
NEW_REWARDS = {step: [step + 0.5 * (step > 4)] for step in range(10)}


def killed_and_resumed(tmp_path, env, tracker: str) -> None:
  """Steps 0 to 7, a checkpoint after 5, a kill; then 5 to 9 with other values."""
  run_dir = tmp_path / "run"
  first = session(run_dir, env, trackers=[tracker], steps=[0, 8], save_at=5, killed=True)
  assert first.returncode == -9, first.stderr
  assert f"tracker {tracker}: " in first.stdout and "Error" not in first.stdout, first.stdout
  position = json.loads(re.search(r"^saved (.*)", first.stdout, re.MULTILINE)[1])
  second = session(run_dir, env, trackers=[tracker], steps=[5, 10], position=position, shift=0.5)
  assert second.returncode == 0, second.stderr
  assert "Error" not in second.stdout, second.stdout


def test_wandb_offline_has_one_record_of_a_run_that_was_killed_and_resumed(tmp_path, offline):
  killed_and_resumed(tmp_path, offline, "wandb")
  history, facts = from_wandb(tmp_path / "run")
  assert [row["_step"] for row in history] == list(range(16))
  assert by_step(history, "train", "train/reward") == REWARDS
  assert list(by_step(history, "heldout", "heldout/pass@1")) == [1, 3, 5, 7, 9]
  [old] = (tmp_path / "run" / "wandb" / "before").iterdir()
  assert old.name.endswith(facts["id"])
  assert (facts["group"], facts["name"]) == ("a-sweep", "run")
  assert json.loads(facts["config"]["seed"]) == 3
  assert set(facts["artifacts"]) >= FILES


def test_mlflow_has_every_value_of_a_run_that_was_killed_and_resumed_once(tmp_path, offline):
  killed_and_resumed(tmp_path, offline, "mlflow")
  rows, [run] = from_mlflow(tmp_path)
  count = collections.Counter((row["key"], row["step"]) for row in rows)
  assert set(count.values()) == {1}
  values = lambda key: {row["step"]: [row["value"]] for row in rows if row["key"] == key}
  assert values("train/reward") == REWARDS
  assert list(values("heldout/pass_1")) == [1, 3, 5, 7, 9]
  assert (run["status"], run["tags"]["sweep"], run["params"]["seed"]) == (
    "FINISHED",
    "a-sweep",
    "3",
  )
  kept = {path.name for path in tmp_path.rglob("artifacts/*")}
  assert kept >= FILES


HALF_MADE = "INSERT INTO _alembic_tmp_"  # MLflow is changing a table of its new database


@pytest.mark.parametrize("moment", [HALF_MADE, "INSERT INTO params"])
def test_mlflow_has_a_run_whose_first_session_was_killed_while_it_was_opened(
  tmp_path, offline, moment
):
  stop = {"pattern": moment, "kill": True}
  checkpoint = {"metrics": 0, "tracking": {"id": "a-run", "rows": 0}}
  plan = {"trackers": ["mlflow"], "steps": [0, 3], "position": checkpoint}
  assert session(tmp_path / "run", offline, **plan, at_statement=stop).returncode == -9
  done = session(tmp_path / "run", offline, **plan)
  assert done.returncode == 0 and "Error" not in done.stdout, done.stdout + done.stderr
  rows, [run] = from_mlflow(tmp_path)
  assert [row["value"] for row in rows if row["key"] == "train/reward"] == [0, 1, 2]
  assert (run["status"], run["params"]["seed"]) == ("FINISHED", "3")
  with sqlite3.connect(tmp_path / "mlflow.db") as database:
    found = dict(database.execute("select name, artifact_location from experiments"))
  assert found == {
    name: f"{tmp_path}/mlruns/{i}" for i, name in enumerate(("Default", "offpolicy-rl"))
  }


@pytest.mark.parametrize("moment", [HALF_MADE, "INSERT INTO experiments.*offpolicy-rl"])
def test_two_runs_begin_at_once_on_a_new_database_of_mlflow(tmp_path, offline, moment):
  """One stops while it makes the database, or the experiment, until the other is over."""
  plan = {"trackers": ["mlflow"], "steps": [0, 3]}
  with concurrent.futures.ThreadPoolExecutor() as pool:
    stop = {"pattern": moment, "kill": False}
    slow = pool.submit(session, tmp_path / "slow", offline, **plan, at_statement=stop)
    while not (tmp_path / "slow" / "reached").exists():
      assert not slow.done(), slow.result().stdout
      time.sleep(0.05)
    quick = session(tmp_path / "quick", offline, **plan)
    (tmp_path / "slow" / "go").touch()
  for done in (slow.result(), quick):
    assert done.returncode == 0 and "Error" not in done.stdout, done.stdout + done.stderr
  _, runs = from_mlflow(tmp_path)
  assert {(run["name"], run["status"]) for run in runs} == {
    ("slow", "FINISHED"),
    ("quick", "FINISHED"),
  }
  assert not list(tmp_path.glob(".mlflow.db*"))


@pytest.fixture
def server(tmp_path, offline):
  """The URL of MLflow's own server, which keeps rows and artifacts below the test's directory."""
  if not list((ROOT / ".venv-trackers").glob("lib/python3*/site-packages/flask")):
    pytest.skip("the packages of MLflow's server are missing: make .venv-trackers/.installed")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [PYTHON, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
  command += [f"--backend-store-uri={offline['MLFLOW_TRACKING_URI']}"]
  command += [f"--artifacts-destination={tmp_path}/kept"]
  (tmp_path / "home").mkdir()
  log = (tmp_path / "server.txt").open("w")
  process = subprocess.Popen(
    command, cwd=tmp_path, env=offline, stdout=log, stderr=log, start_new_session=True
  )
  url, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
  no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    while True:
      assert process.poll() is None and time.monotonic() < end, (
        tmp_path / "server.txt"
      ).read_text()
      with contextlib.suppress(OSError), no_proxy.open(f"{url}/health") as answer:
        assert answer.read() == b"OK"
        break
      time.sleep(0.2)
    yield url
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def test_mlflows_server_has_every_value_and_the_artifacts_of_a_resumed_run(
  tmp_path, offline, server
):
  killed_and_resumed(tmp_path, offline | {"MLFLOW_TRACKING_URI": server}, "mlflow")
  rows, [run] = from_mlflow(tmp_path)
  assert collections.Counter((row["key"], row["step"]) for row in rows).most_common(1)[0][1] == 1
  found = {row["step"]: [row["value"]] for row in rows if row["key"] == "train/reward"}
  assert found == REWARDS and run["status"] == "FINISHED"
  assert {path.name for path in (tmp_path / "kept").rglob("artifacts/*")} == FILES


def test_trackio_goes_on_in_the_run_that_was_killed(tmp_path, offline):
  killed_and_resumed(tmp_path, offline, "trackio")
  rows = from_trackio(tmp_path)
  assert len({row["run"] for row in rows}) == 1
  assert [row["_step"] for row in rows] == list(range(16))
  assert by_step(rows, "train", "train/reward") == REWARDS
  assert list(by_step(rows, "heldout", "heldout/pass@1")) == [1, 3, 5, 7, 9]


def test_without_network_or_key_a_run_ends_as_it_would_and_says_what_to_type(tmp_path, offline):
  env = offline | {
    "WANDB_MODE": "online",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "TRACKIO_DIR": "/proc/nowhere",
  }
  done = session(tmp_path / "run", env, trackers=["wandb", "mlflow", "trackio"], steps=[0, 3])
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if "Error" in line]
  assert any("tracker wandb: PermissionError: no API key" in line for line in lines), lines
  assert any(
    line.startswith("tracker mlflow: ") and "MLFLOW_TRACKING_URI" in line for line in lines
  )
  assert any(line.startswith("tracker trackio: ") and "TRACKIO_DIR" in line for line in lines), (
    lines
  )
  assert len(lines) == 3


def test_the_runs_of_a_sweep_are_a_group(tmp_path, offline):
  """Whole runs of real processes, each in all three trackers at once."""
  (tmp_path / "home").mkdir()
  (tmp_path / "two.py").write_text("def get_sweep():\n  return [{'seed': 1}, {'seed': 2}]\n")
  out = tmp_path / "seeds"
  arguments = [f"--config={ROOT}/configs/test.py", f"--sweep={tmp_path}/two.py", f"--out={out}"]
  settings = {
    "tracker": "wandb,mlflow,trackio",
    "warm_start.steps": 2,
    "learner.steps": 3,
    "evaluation.every": 0,
  }
  arguments += [f"--config.{key}={value}" for key, value in settings.items()]
  done = python("-m", "offpolicy_rl.cli.main", "sweep", *arguments, env=offline, cwd=tmp_path)
  assert done.returncode == 0, done.stdout + done.stderr
  runs = [out / "000-seed=1", out / "001-seed=2"]
  _, told = from_mlflow(tmp_path)
  assert {run["tags"]["sweep"] for run in told} == {"seeds"}
  assert {run["name"] for run in told} == {run.name for run in runs}
  assert {run["params"]["seed"] for run in told} == {"1", "2"}
  for run in runs:
    history, facts = from_wandb(run)
    assert facts["group"] == "seeds" and set(facts["artifacts"]) >= FILES
    assert list(by_step(history, "train", "train/loss")) == [0, 1, 2]
    assert not (run / "tensorboard").exists()
  rows = from_trackio(tmp_path)
  names = {row["run"] for row in rows}
  assert len(names) == 2 and {name.rpartition("-")[0] for name in names} == {r.name for r in runs}


STEPS = 12


def test_a_whole_run_that_is_killed_goes_on_in_all_three_and_in_its_trace(tmp_path, offline):
  (tmp_path / "home").mkdir()
  run_dir = tmp_path / "run"
  settings = {
    "tracker": "tensorboard,wandb,mlflow,trackio",
    "trace_every": 1,
    "warm_start.steps": 2,
    "lag.mode": "fixed",  # the learner waits, so that the kill comes between two checkpoints
    "lag.max_lag": 1,
    "learner.steps": STEPS,
    "checkpoint.every": 5,
    "evaluation.every": 4,
  }
  command = [PYTHON, "-m", "offpolicy_rl.cli.main", "local", f"--run_dir={run_dir}"]
  command += [
    f"--config={ROOT}/configs/test.py",
    *(f"--config.{k}={v}" for k, v in settings.items()),
  ]
  log = (tmp_path / "log.txt").open("w")
  begun = time.time()
  local = subprocess.Popen(
    command, cwd=tmp_path, env=offline, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
  )
  try:
    while local.poll() is None and len(trained(run_dir)) < 8 and time.time() < begun + 300:
      time.sleep(0.02)
  finally:
    # Learner and sampler have sessions of their own, and would end in order if only `local` died.
    asked = subprocess.run(["pgrep", "-P", str(local.pid)], capture_output=True, text=True)
    for pid in (local.pid, *map(int, asked.stdout.split())):
      os.kill(pid, signal.SIGKILL)
    local.wait()
  done = python(*command[1:], "--resume", env=offline, cwd=tmp_path)
  assert done.returncode == 0, done.stdout + done.stderr
  assert "tracker wandb: offline" in done.stdout and "Error" not in done.stdout, done.stdout
  steps = list(range(STEPS))
  reward = {row["step"]: [row["reward"]] for row in trained(run_dir)}
  history, facts = from_wandb(run_dir)
  assert by_step(history, "train", "train/reward") == reward and list(reward) == steps
  rows, [told] = from_mlflow(tmp_path)
  values = [(row["step"], row["value"]) for row in rows if row["key"] == "train/reward"]
  assert sorted(values) == [(step, value) for step, [value] in reward.items()]
  assert told["tags"]["offpolicy_rl_id"] == facts["id"] and told["status"] == "FINISHED"
  assert by_step(from_trackio(tmp_path), "train", "train/reward") == reward
  check_trace(run_dir, begun)


def trained(run_dir) -> list[dict]:
  return [row for row in metrics.read(run_dir) if row["kind"] == metrics.TRAIN]


def check_trace(run_dir, begun: float) -> None:
  """Every ticket's stages follow each other, whichever process they were in, by one clock."""
  events = json.loads((run_dir / trace.FILE).read_text()[:-2] + "]")
  spans = collections.defaultdict(list)
  for event in events:
    if event["ph"] in "be":
      spans[event["id"]].append((event["name"], event["ph"], event["ts"] / 1e6))
  complete = [found for found in spans.values() if len(found) == 2 * len(types.STAGES)]
  assert len(complete) > 20
  for found in complete:
    assert [name for name, _, _ in found[::2]] == list(types.STAGES)
    times = [at for _, _, at in found]
    assert all(b - a > -0.05 for a, b in itertools.pairwise(times))  # two clocks: nearly one
    assert begun < times[0] and times[-1] < time.time()
  shares = {name for row in trained(run_dir) for name in row if name.startswith("ticket/")}
  assert shares == {f"ticket/{stage}" for stage in types.STAGES}
