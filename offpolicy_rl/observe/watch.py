"""Shows a live run on a terminal, from its directory or its learner.

A source maps (session, position, seconds to wait) to a `types.RunUpdate`: `directory`, or
`LearnerClient.watch` of transport/client.py.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.system import output

FILE = "live.json"
_SECONDS = 1.0  # between updates
_MAX_ROWS = 2000  # beyond, every second row of the older half is dropped

Source = Callable[[str, int, float], types.RunUpdate]


def about(config: Any) -> str:
  """Names task, objective, lag and seed of a nested configuration."""
  lag = config["lag"]
  return (
    f"{config['task']['name']}, {config['objective']['name']}, lag {lag['mode']} {lag['max_lag']}, "
    f"seed {config['seed']}"
  )


def write_status(run_dir: pathlib.Path, status: types.RunStatus) -> None:
  """Replaces RUN/live.json."""
  row = status._asdict() | {"samplers": [sampler._asdict() for sampler in status.samplers]}
  temporary = run_dir / f"{FILE}.tmp"
  temporary.write_text(json.dumps(row), encoding="utf-8")
  temporary.replace(run_dir / FILE)


def read_status(run_dir: pathlib.Path) -> types.RunStatus:
  """Reads RUN/live.json; without one, returns what the configuration of the run says."""
  file = run_dir / FILE
  if file.exists():
    row = json.loads(file.read_text(encoding="utf-8"))
    samplers = tuple(types.SamplerStatus(**sampler) for sampler in row.pop("samplers"))
    return types.RunStatus(**row, samplers=samplers)
  config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
  ended = "finished" if (run_dir / "ledger.json").exists() else ""
  return types.RunStatus(
    session="",
    run_id=run_dir.absolute().name,
    about=about(config),
    at=math.nan,
    ended=ended,
    num_steps=config["learner"]["steps"],
    tickets={},
    samplers=(),
  )


def directory(run_dir: pathlib.Path) -> Source:
  """A source that reads the files of a run, which may be on a mounted disk."""

  def read(session: str, position: int, wait_seconds: float) -> types.RunUpdate:
    time.sleep(wait_seconds)
    return metrics.read_since(run_dir, read_status(run_dir), session, position)

  return read


class RunView(NamedTuple):
  """Everything that is known about a watched run."""

  status: types.RunStatus
  position: int
  newest: terminal.Newest
  rows: list[types.MetricsRow]


def extend(view: RunView | None, update: types.RunUpdate) -> RunView:
  """Adds an update to a view, which is thinned if it has too many rows."""
  rows, newest = ([], {}) if view is None or update.reset else (view.rows, view.newest)
  rows = rows + update.rows
  while len(rows) > _MAX_ROWS:
    half = len(rows) // 2
    rows = rows[:half:2] + rows[half:]
  return RunView(update.status, update.position, metrics.newest(newest, update.rows), rows)


def run(source: Source, console: Console, *, once: bool = False) -> RunView:
  """Shows a run until it ends, or once; as plain lines if the console is no terminal."""
  view = extend(None, source("", 0, 0.0))
  draw = lambda: terminal.dashboard(view.status, view.newest, view.rows, console)
  following = lambda: extend(view, source(view.status.session, view.position, _SECONDS))
  if once:
    console.print(draw())
    return view
  if console.is_terminal:
    with Live(get_renderable=draw, console=console, refresh_per_second=2):
      while not view.status.ended and output.problem() is None:  # Live draws in its own thread
        view = following()
  else:
    printed = -math.inf
    while True:
      now = time.monotonic()
      if now - printed >= terminal.LINE_SECONDS or view.status.ended:
        console.print(terminal.line(view.status, view.newest, view.rows))
        printed = now
      if view.status.ended:
        break
      view = following()
  console.print(terminal.ending(view.status, view.newest))
  return view
