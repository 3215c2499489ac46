"""Does anything get lost, doubled or bent when everything goes wrong? Breaks a run and audits it.

  python -m benchmarks.chaos --faults=200 --seed=1               fixed lag: equal to a quiet run
  python -m benchmarks.chaos --faults=200 --seed=1 --mode=async
  python -m benchmarks.chaos --faults=200 --seed=1 --world       episodes of several turns

Learner and three samplers are processes that talk through a TCP proxy. Faults come one after the
other, drawn by the seed: kills, SIGSTOP, cut, refused, slow and damaged connections, a full disk, a
damaged checkpoint, jumps of the wall clock. A supervisor starts what died, as orchestrators do.
With --world the policy plays in an environment that hangs, crashes, hoards memory, answers late or
with 10 MB, and says that it is done when it is not (benchmarks/chaos_world.py).
Exit code 0 only when the audit, printed last, finds nothing lost, doubled, over the lag bound or
(fixed lag) different from the undisturbed run.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import chaos_faults, chaos_world
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import replies, schedule

RESULTS = pathlib.Path(__file__).parent / "results"
LAG = 4
STEPS_PER_FAULT = 8
SETTINGS = [
  "--config=configs/test.py",
  "--config.warm_start.steps=30",
  f"--config.lag.max_lag={LAG}",
  "--config.checkpoint.every=5",
  "--config.evaluation.every=0",
  "--config.learner.audit_every=0",
  "--config.transport.lease_seconds=3",
  "--config.transport.heartbeat_seconds=0.5",
  "--config.transport.reissue_seconds=4",
  "--config.sampler.grace_seconds=2",
  "--config.transport.reconnect_seconds=120",
]
STALLED_SECONDS = 120.0
MOST_GROWTH = 1.2  # of the memory of all processes, from a run's first half to its second
_ACCEPTED = re.compile(r"(train/\d+/\d+) ([0-9a-f]{16}): accepted")


class Run:
  """A learner and its samplers behind a proxy, kept alive."""

  def __init__(
    self, folder: pathlib.Path, *, mode: str, steps: int, samplers: int, draw, world: bool = False
  ):
    self.disk = chaos_faults.SmallDisk(folder / "disk", megabytes=96)
    self.run_dir, self.logs = self.disk.path / "run", folder / "logs"
    self.logs.mkdir()
    self.proxy = chaos_faults.Proxy(random.Random(draw.random()))  # its own: threads share it
    self.clock = folder / "hook" / "clock"
    self.world_faults = folder / "world_faults.txt"
    self.env = os.environ | chaos_faults.write_clock_hook(folder / "hook")
    self.env |= {chaos_world.FILE: str(self.world_faults)}
    self.arguments = [
      *SETTINGS,
      *(chaos_world.SETTINGS if world else ()),
      f"--config.lag.mode={mode}",
      f"--config.learner.steps={steps}",
      f"--run_dir={self.run_dir}",
    ]
    self.learner: subprocess.Popen | None = None
    self.samplers: list[subprocess.Popen | None] = [None] * samplers
    self.starts = collections.Counter()
    self.megabytes: list[float] = []  # of all processes, now and then

  def launch(self, name: str, *arguments: str) -> subprocess.Popen:
    """A role as a process of its own session, its output appended to NAME.log."""
    self.starts[name] += 1
    with (self.logs / f"{name}.log").open("a") as log:
      return subprocess.Popen(
        [sys.executable, "-m", "offpolicy_rl.cli.main", *arguments],
        env=self.env,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )

  def tend(self) -> bool:
    """Starts whatever is not running; True once the learner has finished the run."""
    if self.learner is None or self.learner.poll() not in (None, 0):
      again = [] if self.learner is None else ["--resume"]
      if self.proxy.target:
        host, port = self.proxy.target
        again.append(f"--listen={host}:{port}")
      self.learner = self.launch("learner", "learner", *self.arguments, *again)
    if self.proxy.target is None and (self.run_dir / "address").exists():
      host, _, port = (self.run_dir / "address").read_text().rpartition(":")
      self.proxy.target = (host, int(port))
    if self.learner.poll() == 0:
      return True
    for i, sampler in enumerate(self.samplers):
      if self.proxy.target and (sampler is None or sampler.poll() is not None):
        self.samplers[i] = self.launch(
          f"sampler-{i}",
          "sampler",
          f"--learner={self.proxy.address}",
          f"--name=s{i}",
          "--patience=120",
          "--verbose",
        )
    return False

  def progress(self) -> int:
    """Steps done, as the lag schedule tells."""
    path = self.run_dir / schedule.FILE
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

  def weigh(self) -> None:
    """Notes the memory of all processes and what they have started."""
    alive = [p.pid for p in (self.learner, *self.samplers) if p is not None and p.poll() is None]
    self.megabytes.append(chaos_faults.megabytes(alive))

  def end(self) -> None:
    """Kills what is left."""
    for process in [self.learner, *self.samplers]:
      if process is not None and process.poll() is None:
        signal_to(process, signal.SIGKILL)
        process.wait()


def signal_to(process: subprocess.Popen | None, number: int) -> None:
  """Signals a process and its children, if it lives."""
  if process is not None and process.poll() is None:
    os.killpg(process.pid, number)


# -- the faults: function of (run, draw) -> whether it could be done


def kill_learner(run, _draw) -> bool:
  """SIGKILL."""
  signal_to(run.learner, signal.SIGKILL)
  run.learner.wait()
  return True


def kill_sampler(run, draw) -> bool:
  """SIGKILL to one of them."""
  signal_to(draw.choice(run.samplers), signal.SIGKILL)
  return True


def kill_all(run, draw) -> bool:
  """SIGKILL to everything, as when the power fails."""
  for sampler in run.samplers:
    signal_to(sampler, signal.SIGKILL)
  return kill_learner(run, draw)


def preempt_sampler(run, draw) -> bool:
  """SIGTERM to one of them."""
  signal_to(draw.choice(run.samplers), signal.SIGTERM)
  return True


def stop_sampler(run, draw) -> bool:
  """One hangs, for longer than its leases or not."""
  sampler = draw.choice(run.samplers)
  signal_to(sampler, signal.SIGSTOP)
  time.sleep(draw.uniform(0.5, 5.0))
  signal_to(sampler, signal.SIGCONT)
  return True


def stop_learner(run, draw) -> bool:
  """It hangs for some seconds."""
  signal_to(run.learner, signal.SIGSTOP)
  time.sleep(draw.uniform(0.5, 4.0))
  signal_to(run.learner, signal.SIGCONT)
  return True


def cut_connections(run, draw) -> bool:
  """All of them, and no new ones for a moment."""
  run.proxy.refusing = True
  run.proxy.cut()
  time.sleep(draw.uniform(0.0, 2.0))
  run.proxy.refusing = False
  return True


def slow_connections(run, draw) -> bool:
  """Each chunk waits."""
  run.proxy.delay = draw.uniform(0.02, 0.2)
  time.sleep(draw.uniform(0.5, 3.0))
  run.proxy.delay = 0.0
  return True


def damage_bytes(run, draw) -> bool:
  """One bit of some of the next chunks changes on the way."""
  run.proxy.corrupt = draw.randrange(1, 6)
  time.sleep(draw.uniform(0.2, 1.0))
  run.proxy.corrupt = 0
  run.proxy.cut()  # a connection whose framing was hit may hang until its keepalive ends it
  return True


def fill_disk(run, draw) -> bool:
  """Nothing more fits on the learner's disk for some seconds."""
  if not run.disk.mounted:
    return False
  run.disk.fill()
  time.sleep(draw.uniform(0.5, 3.0))
  run.disk.free()
  return True


def damage_checkpoint(run, draw) -> bool:
  """The learner is killed and its newest checkpoint is damaged while it is away."""
  kill_learner(run, draw)
  return chaos_faults.damage_newest_checkpoint(run.run_dir, draw)


def jump_clock(run, draw) -> bool:
  """The wall clock of all processes jumps, back or ahead, by up to a day."""
  run.clock.write_text(str(draw.uniform(-86_400, 86_400)))
  return True


FAULTS = {
  kill_learner: 2,
  kill_sampler: 3,
  kill_all: 1,
  preempt_sampler: 2,
  stop_sampler: 3,
  stop_learner: 2,
  cut_connections: 3,
  slow_connections: 2,
  damage_bytes: 3,
  fill_disk: 2,
  damage_checkpoint: 1,
  jump_clock: 2,
}


def disturb(run: Run, *, faults: int, draw: random.Random, say) -> collections.Counter:
  """Runs to the end with so many faults, spread over the steps; counts those done by name."""
  done: collections.Counter = collections.Counter()
  progress, seen_at = 0, time.monotonic()
  while not run.tend():
    time.sleep(0.05)
    now = run.progress()
    if now != progress:
      progress, seen_at = now, time.monotonic()
      run.weigh()
    if time.monotonic() - seen_at > STALLED_SECONDS:
      raise TimeoutError(f"no step for {STALLED_SECONDS:.0f} s after {progress}")
    number = sum(done.values())
    if number < faults and progress >= (number + 0.5) * STEPS_PER_FAULT:
      fault = draw.choices(list(FAULTS), weights=list(FAULTS.values()))[0]
      name = fault.__name__ if fault(run, draw) else f"{fault.__name__} (not possible)"
      done[name] += 1
      say(f"fault {number + 1}/{faults} at step {progress}: {name}")
      seen_at = time.monotonic()
  return done


def grew(megabytes: list[float]) -> bool:
  """Whether the largest of the second half is much above that of the first."""
  half = len(megabytes) // 2
  return max(megabytes[half:]) > MOST_GROWTH * max(megabytes[:half])


def audit(run: Run, *, mode: str, steps: int, reference: dict | None) -> dict[str, int]:
  """Counts of everything that must be 0, from what learner and samplers wrote independently."""
  rows = [json.loads(line) for line in (run.run_dir / schedule.FILE).read_text().splitlines()][1:]
  consumed = {
    f"train/{row['step']}/{i}": found for row in rows for i, found in enumerate(row["digests"])
  }
  groups = sum(len(row["digests"]) for row in rows)
  accepted = [
    match.groups()
    for log in run.logs.glob("sampler-*.log")
    for match in _ACCEPTED.finditer(log.read_text())
  ]
  lags = [row["step"] - version for row in rows for version in row["versions"]]
  expected = [min(row["step"], LAG) for row in rows for _ in row["versions"]]
  ledger = json.loads((run.run_dir / "ledger.json").read_text())
  trained = [row["step"] for row in metrics.read(run.run_dir) if row["kind"] == "train"]
  found = {
    "accepted_groups_lost": sum(consumed.get(ticket) != digest for ticket, digest in accepted),
    "groups_doubled": groups - len(consumed),
    "steps_missing_or_doubled": abs(len(rows) - steps)
    + sum(trained != list(range(steps)) for _ in "x"),
    "over_the_lag_bound": sum(not 0 <= lag <= LAG for lag in lags),
    "tickets_left": ledger["queued"] + ledger["out"] + ledger["waiting"],
    "memory_grew": int(grew(run.megabytes)),
  }
  if mode == "fixed":
    found["not_the_fixed_lag"] = sum(lag != e for lag, e in zip(lags, expected, strict=True))
  if reference is not None:
    found["arrays_unlike_the_undisturbed_run"] = differences(reference, parameters(run.run_dir))
  return {"accepted_groups_seen": len(accepted), **found}


def parameters(run_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint's state."""
  import jax
  import orbax.checkpoint as ocp

  steps = run_dir / "checkpoints" / "steps"
  newest = max(int(p.name) for p in steps.iterdir() if p.name.isdigit())
  with ocp.StandardCheckpointer() as reader:
    state = reader.restore(steps / str(newest) / "state")
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(a: dict, b: dict) -> int:
  """Number of arrays that are not the same to the bit."""
  return sum(
    name not in a or name not in b or not np.array_equal(a[name], b[name]) for name in a | b
  )


def undisturbed(folder: pathlib.Path, *, mode: str, steps: int, world: bool) -> dict:
  """The parameters at the end of the same run without faults; one sampler gives them as any do."""
  folder.mkdir()
  run = Run(folder, mode=mode, steps=steps, samplers=1, draw=random.Random(0), world=world)
  try:
    disturb(run, faults=0, draw=random.Random(0), say=print)
    return parameters(run.run_dir)
  finally:
    run.end()
    run.disk.close()


def study(
  *,
  faults: int,
  seed: int,
  mode: str,
  samplers: int,
  folder: pathlib.Path,
  world: bool = False,
  say=print,
) -> dict:
  """Breaks one run; returns what was done and what the audit found."""
  steps = max(1, faults) * STEPS_PER_FAULT + 8
  started = time.monotonic()
  same = None
  if mode == "fixed":
    same = undisturbed(folder / "undisturbed", mode=mode, steps=steps, world=world)
    say(f"undisturbed: {steps} steps in {time.monotonic() - started:.0f} s")
  (folder / "broken").mkdir()
  draw = random.Random(seed)
  where = folder / "broken"
  run = Run(where, mode=mode, steps=steps, samplers=samplers, draw=draw, world=world)
  try:
    done = disturb(run, faults=faults, draw=draw, say=say)
    found = audit(run, mode=mode, steps=steps, reference=same)
    ended = episodes(run.run_dir) if world else {}
    met = collections.Counter(run.world_faults.read_text().split()) if world else {}
  finally:
    run.end()
    run.disk.close()
  return {
    "command": f"python -m benchmarks.chaos --faults={faults} --seed={seed} --mode={mode}"
    + " --world" * world,
    "minutes": round((time.monotonic() - started) / 60, 1),
    "steps": steps,
    "samplers": samplers,
    "faults": dict(sorted(done.items())),
    "world_faults": dict(sorted(met.items())),
    "processes_started": dict(sorted(run.starts.items())),
    "episodes": ended,
    "megabytes": {"first": round(run.megabytes[0]), "most": round(max(run.megabytes))},
    "audit": found,
  }


def episodes(run_dir: pathlib.Path) -> dict[str, int]:
  """Number of recorded episodes by how they ended."""
  rows = metrics.read_lines(run_dir / replies.FILE)
  ends = collections.Counter(e["ended"] for row in rows for e in row["episodes"])
  return dict(sorted(ends.items()))


def passed(report: dict) -> bool:
  """Nothing found, and something was looked at."""
  found = dict(report["audit"])
  return found.pop("accepted_groups_seen") > 0 and not any(found.values())


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--faults", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--mode", choices=["fixed", "async"], default="fixed")
  parser.add_argument("--samplers", type=int, default=3)
  parser.add_argument("--world", action="store_true", help="in an environment that misbehaves")
  parser.add_argument(
    "--folder", type=pathlib.Path, help="where to leave all files (default: removed)"
  )
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
    folder = arguments.folder or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    report = study(
      faults=arguments.faults,
      seed=arguments.seed,
      mode=arguments.mode,
      samplers=arguments.samplers,
      folder=folder,
      world=arguments.world,
    )
  name = f"chaos_{arguments.mode}" + "_world" * arguments.world
  if arguments.faults >= 100:
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
  for title in ("faults", "world_faults", "processes_started", "episodes", "megabytes", "audit"):
    print(f"\n{title.replace('_', ' ')}")
    for key, value in report[title].items():
      print(f"  {value:6d}  {key.replace('_', ' ')}")
  print("\naudit passed" if passed(report) else "\naudit FAILED")
  return 0 if passed(report) else 1


if __name__ == "__main__":
  sys.exit(main())
