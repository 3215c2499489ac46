"""Stands for a learner or a sampler of `local`: notes that it lives, and ends as it is told."""

import json
import os
import pathlib
import signal
import sys
import time

from offpolicy_rl.system import children

children.end_with_parent()
role, notes = sys.argv[1], pathlib.Path(os.environ["NOTES"])
run_dir = notes / "run"


def say_ended(how: str) -> None:
  (run_dir / "live.tmp").write_text(json.dumps({"ended": how}))
  (run_dir / "live.tmp").rename(run_dir / "live.json")


def on_signal(*_) -> None:
  if role == "learner":
    time.sleep(0.2)  # a checkpoint takes its time
    say_ended("stopped")
  sys.exit(0)


signal.signal(signal.SIGTERM, on_signal)
if role == "learner":
  say_ended("")
  (run_dir / "address").unlink(missing_ok=True)  # as --restart does
  time.sleep(0.2)
  (run_dir / "address.tmp").write_text("127.0.0.1:1")
  (run_dir / "address.tmp").rename(run_dir / "address")
(notes / f"{role}-{os.getpid()}.tmp").write_text(" ".join(sys.argv[2:]))
(notes / f"{role}-{os.getpid()}.tmp").rename(notes / f"{role}-{os.getpid()}")
order = notes / f"{role}.exit"  # the exit code, for all of them
while not order.exists():
  over = json.loads((run_dir / "live.json").read_text())["ended"]
  if role == "sampler" and over:
    sys.exit(0)
  time.sleep(0.02)
if role == "learner":
  say_ended("finished")
print(f"last words of a {role}", flush=True)
sys.exit(int(order.read_text()))
