"""A live run on a terminal, from its directory or its learner; the run never notices.

A source answers (session, position, seconds to wait) -> `types.News`: `directory`, or
`LearnerClient.watch` of transport/client.py.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.system import output

FILE = "live.json"
_SECONDS = 1.0  # between looks
_MAX_ROWS = 2000  # of more, every second one of the older half goes

Source = Callable[[str, int, float], types.News]


def about(config: Mapping) -> str:
  """Task, objective, lag and seed of a nested configuration, as text."""
  lag = config["lag"]
  return (
    f"{config['task']['name']}, {config['objective']['name']}, lag {lag['mode']} {lag['max_lag']}, "
    f"seed {config['seed']}"
  )


def write_status(run_dir: pathlib.Path, status: types.RunStatus) -> None:
  """Replaces RUN/live.json."""
  row = status._asdict() | {"samplers": [sampler._asdict() for sampler in status.samplers]}
  temporary = run_dir / f"{FILE}.tmp"
  temporary.write_text(json.dumps(row))
  temporary.replace(run_dir / FILE)


def read_status(run_dir: pathlib.Path) -> types.RunStatus:
  """Reads RUN/live.json; of a run that has none, what its configuration says."""
  file = run_dir / FILE
  if file.exists():
    row = json.loads(file.read_text())
    samplers = tuple(types.SamplerStatus(**sampler) for sampler in row.pop("samplers"))
    return types.RunStatus(**row, samplers=samplers)
  config = json.loads((run_dir / "config.json").read_text())
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
  """Reads a run's files; the directory may be another machine's, mounted."""

  def look(session: str, position: int, wait_seconds: float) -> types.News:
    time.sleep(wait_seconds)
    return metrics.read_since(run_dir, read_status(run_dir), session, position)

  return look


@dataclasses.dataclass(frozen=True)
class View:
  """All that is known of a run."""

  status: types.RunStatus
  position: int
  newest: terminal.Newest
  rows: list[types.MetricsRow]


def update(view: View | None, news: types.News) -> View:
  """A view with what is new; thinned where it has too many rows."""
  rows, newest = ([], {}) if view is None or news.anew else (view.rows, view.newest)
  rows = rows + news.rows
  while len(rows) > _MAX_ROWS:
    half = len(rows) // 2
    rows = rows[:half:2] + rows[half:]
  return View(news.status, news.position, metrics.newest(newest, news.rows), rows)


def run(source: Source, console: Console, *, once: bool = False) -> View:
  """Shows a run until it is over, or once; plain lines where there is no terminal."""
  view = update(None, source("", 0, 0.0))
  draw = lambda: terminal.dashboard(view.status, view.newest, view.rows, console)
  look = lambda: update(view, source(view.status.session, view.position, _SECONDS))
  if once:
    console.print(draw())
    return view
  if console.is_terminal:
    with Live(get_renderable=draw, console=console, refresh_per_second=2):
      while not view.status.ended and output.problem() is None:  # raised in Live's own thread
        view = look()
  else:
    printed = -math.inf
    while True:
      now = time.monotonic()
      if now - printed >= terminal.LINE_SECONDS or view.status.ended:
        console.print(terminal.line(view.status, view.newest, view.rows))
        printed = now
      if view.status.ended:
        break
      view = look()
  console.print(terminal.ending(view.status, view.newest))
  return view
