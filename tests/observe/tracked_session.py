"""One session of a tracked run without training: rows of steps, then the end, or a kill.

python -m tests.observe.tracked_session RUN '{"trackers": ["wandb"], "steps": [0, 5], ...}'
"""

import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

from offpolicy_rl.observe import metrics, trackers, tracking


def main(run_dir: pathlib.Path, plan: dict) -> None:
  """Prints what trackers say, and the position of a checkpoint after `save_at` steps."""
  position, said = plan.get("position"), threading.Semaphore(0)
  if "at_statement" in plan:
    at_statement(run_dir, **plan["at_statement"])

  def say(line: str) -> None:
    print(line, flush=True)
    said.release()

  writer = metrics.MetricsWriter(
    run_dir, position=position["metrics"] if position else 0, tensorboard=False
  )
  tracked = tracking.Tracking(
    {name: trackers.PACKAGES[name] for name in plan["trackers"]},
    run_dir,
    {"seed": 3, "task.name": "sums", "objective.fn": None},
    say,
    group="a-sweep",
    position=position and position["tracking"],
  )
  tracked.start()
  if not position:
    write(writer, tracked, "task", 0, {"prompts": 7})
  for step in range(*plan["steps"]):
    reward = step + plan.get("shift", 0.0)
    write(writer, tracked, "train", step, {"reward": reward, "lag/histogram": {"1": 2}})
    if step % 2:
      row = {"phase": "during", "heldout/pass@1": reward / 100}
      write(writer, tracked, "heldout", step, row)
    if step + 1 == plan.get("save_at"):
      saved = {"metrics": writer.position(), "tracking": tracked.position()}
      print("saved " + json.dumps(saved), flush=True)
  if plan.get("killed"):
    for _ in plan["trackers"]:
      said.acquire(timeout=60)  # it is open
    time.sleep(3.0)
    os.kill(os.getpid(), signal.SIGKILL)
  for name in tracking.ARTIFACTS:
    (run_dir / name).write_text(f"{name}\n")
  writer.close()
  tracked.finish("finished")


def at_statement(run_dir: pathlib.Path, pattern: str, kill: bool) -> None:
  """Before the first statement of SQL that fits the pattern: ends, or waits for the file `go`."""
  import sqlalchemy
  import sqlalchemy.engine

  reached = run_dir / "reached"

  def look(connection, cursor, statement, parameters, *_) -> None:
    if reached.exists() or not re.search(pattern, f"{statement} {parameters}", re.DOTALL):
      return
    reached.touch()
    if kill:
      os.kill(os.getpid(), signal.SIGKILL)
    while not (run_dir / "go").exists():
      time.sleep(0.05)

  sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", look)


def write(writer, tracked, kind: str, step: int, row: dict) -> None:
  writer.write(kind, step, row)
  tracked.write(kind, step, row)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
