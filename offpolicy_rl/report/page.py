"""The page of one run."""

import html
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.observe import charts as charts_lib
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.observe.catalogue import ALARMS, METRICS
from offpolicy_rl.observe.charts import Chart
from offpolicy_rl.report import (
  completions,
  configuration,
  document,
  figures,
  runs,
  samplers,
  stages,
)
from offpolicy_rl.report.figures import Figure
from offpolicy_rl.report.runs import Run
from offpolicy_rl.report.svg import number

_HISTOGRAMS = {"Lag in flight": "lag/in_flight_histogram", "Lag in queue": "lag/in_queue_histogram"}
_ALL_LAG = {"Lag of every token": "lag/histogram"}  # for runs that did not split it
_REPLACED = Chart(
  "Replaced groups",
  {},  # by length
  "without signal, by mean length of their completions",
  stacked=True,
)
_REPLACED_REWARD = Chart("Their reward", {"reward": "filtered/reward"})


def write(run_dir: pathlib.Path) -> pathlib.Path:
  """Writes `report.html` into the directory of a run, finished or not; returns its path.

  Raises:
    ConfigError: it is no run's directory.
  """
  run = runs.read(pathlib.Path(run_dir))
  path = pathlib.Path(run_dir) / "report.html"
  path.write_text(_page(run), encoding="utf-8")
  return path


class _Part(NamedTuple):
  """A section with text above and below its charts; left out if it has none of these."""

  anchor: str
  title: str
  charts: Sequence[Figure | None] = ()
  above: str = ""
  below: str = ""


def _page(run: Run) -> str:
  parts = [p for p in _parts(run) if any(p.charts) or p.above or p.below]
  sections = [
    document.section(p.anchor, p.title, p.above, document.grid(p.charts), p.below) for p in parts
  ]
  body = [
    f"<header><h1>{html.escape(run.name)}</h1><p class=soft>{html.escape(runs.title(run.config))}"
    f"</p>{_tiles(run)}</header>",
    document.navigation([(p.anchor, p.title) for p in parts]),
    "<main>",
    *sections,
    "</main>",
  ]
  drawn = [figure for p in parts for figure in p.charts if figure]
  data = {"charts": [f.data for f in drawn], "completions": completions.for_browser(run.samples)}
  return document.page(run.name, body, data)


def _parts(run: Run) -> list[_Part]:
  last = runs.last_step([run])
  draw = lambda section: [
    figures.draw_run(chart, run, last) for chart in charts_lib.SECTIONS[section] if chart.reported
  ]
  below = _BROWSER if run.samples else _NO_COMPLETIONS
  return [
    _Part("results", charts_lib.RESULTS, draw(charts_lib.RESULTS), above=_phases(run)),
    _Part("lag", charts_lib.LAG, _lag(run, last) + draw(charts_lib.LAG)),
    _Part("objective", charts_lib.OBJECTIVE, draw(charts_lib.OBJECTIVE)),
    _Part("agreement", charts_lib.AGREEMENT, draw(charts_lib.AGREEMENT), below=_alarms(run)),
    _Part("samplers", "Samplers", below=samplers.table(run.rows[metrics.TRAIN])),
    _Part(
      "time", charts_lib.TIME, draw(charts_lib.TIME), below=stages.section(run.rows[metrics.TRAIN])
    ),
    _Part("left-out", "Left out", _filtered(run, last), below=_left_out(run)),
    _Part("completions", "Completions", below=below),
    _Part("configuration", "Configuration", below=configuration.section(run.config)),
  ]


def _tiles(run: Run) -> str:
  train, heldout = run.rows[metrics.TRAIN], run.rows[metrics.HELDOUT]
  tiles = [("steps", f"{len(train):,} of {run.config['learner']['steps']:,}")]
  scores = [row["heldout/pass@1"] for row in heldout if metrics.is_of_training(row)]
  if scores:
    ends = [scores[0], scores[-1]][: len(scores)]
    tiles.append(("held-out pass@1", " → ".join(f"{end:.3f}" for end in ends)))
  for name, label in (("reward", "reward"), ("entropy", "entropy, nats")):
    values = [row[name] for row in train if name in row]
    if values:
      few = max(1, len(values) // 10)
      ends = [sum(part) / few for part in (values[:few], values[-few:])]
      tiles.append((label, " → ".join(number(end) for end in ends[: 1 + (len(values) > 1)])))
  lags = [row for row in train if "lag/max" in row]
  if lags:
    mean = sum(row["lag/mean"] for row in lags) / len(lags)
    tiles.append(("lag, mean / max", f"{number(mean)} / {max(row['lag/max'] for row in lags)}"))
  gaps = [row["mismatch/max"] for row in train if "mismatch/max" in row]
  if gaps:
    tiles.append(("largest mismatch, nats", number(max(gaps))))
  seconds = sum(row.get("learner/seconds", 0.0) for row in train)
  if seconds:
    tiles.append(("time of all steps", terminal.clock(seconds)))
  cells = "".join(
    f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in tiles
  )
  return f"<dl class=tiles>{cells}</dl>"


def _phases(run: Run) -> str:
  names = [name for name in METRICS[metrics.HELDOUT] if name.startswith("heldout/")]
  rows = [row for row in run.rows[metrics.HELDOUT] if row["phase"] != "during"]
  names = [name for name in names if any(name in row for row in rows)]
  tasks = dict.fromkeys(task for row in rows for task in metrics.of_tasks(row))
  body = [
    [
      row["phase"],
      str(row["version"]) if metrics.is_of_training(row) else "none yet",
      *(_cell(row.get(name)) for name in names),
      *(_cell(metrics.of_tasks(row).get(task)) for task in tasks),
    ]
    for row in rows
  ]
  head = ["held-out", "version", *map(_words, names), *(f"pass@1, {task}" for task in tasks)]
  return document.table(head, body, empty="No evaluation has finished.")


def _words(name: str) -> str:
  return name.rpartition("/")[2].replace("_", " ")


def _cell(value) -> str:
  return "" if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _lag(run: Run, last: int) -> list[Figure | None]:
  drawn = [figures.draw_histogram(t, name, run, last) for t, name in _HISTOGRAMS.items()]
  all_lag = [figures.draw_histogram(t, name, run, last) for t, name in _ALL_LAG.items()]
  return drawn if any(drawn) else all_lag


def _alarms(run: Run) -> str:
  train = run.rows[metrics.TRAIN]
  counts = {alarm: sum(row.get(alarm.name, 0) > 0 for row in train) for alarm in ALARMS}
  rows = [[alarm.meaning, f"{n:,} of {len(train):,}"] for alarm, n in counts.items() if n]
  return document.table(("alarm", "steps"), rows)


def _filtered(run: Run, last: int) -> list[Figure | None]:
  lines = {_up_to(n): f"filtered/length/{n}" for n in sorted(_lengths(run))}
  shown = (_REPLACED._replace(lines=lines), _REPLACED_REWARD) if lines else ()
  return [figures.draw_run(chart, run, last) for chart in shown]


def _lengths(run: Run) -> Counter:
  """Replaced groups by their completions' mean length, rounded up to a power of 2."""
  groups = Counter()
  for row in run.rows[metrics.TRAIN]:
    groups.update({int(n): count for n, count in row.get("filtered/by_length", {}).items()})
  return groups


def _up_to(length: int) -> str:
  return f"{length // 2 + 1:,} to {length:,} tokens" if length > 1 else "1 token"


def _left_out(run: Run) -> str:
  lengths = _lengths(run)
  groups = [[_up_to(n), f"{lengths[n]:,}"] for n in sorted(lengths)]
  prompts = [
    [name.replace("_", " "), f"{count:,}"]
    for row in run.rows[metrics.TASK]
    for name, count in row.items()
    if name not in ("kind", "step")
  ]
  tickets = [[name, f"{count:,}"] for name, count in run.tickets.items() if count]
  tables = [
    document.table(("replaced, by mean length", "groups"), groups),
    document.table(("prompts", "number"), prompts),
    document.table(("tickets", "number"), tickets),
  ]
  return f"<div class=tables>{''.join(tables)}</div>" if any(tables) else ""


_NO_COMPLETIONS = "<p class=soft>No completion has been recorded yet.</p>"
_BROWSER = """
<div id=browser tabindex=0 aria-label="recorded groups; left and right arrow: other step">
<div class=bar>
<button id=earlier type=button aria-label="earlier step">◀</button>
<input id=at type=range min=0 step=1 aria-label="recorded step">
<button id=later type=button aria-label="later step">▶</button>
<output id=where></output>
<label>colour <select id=colour>
<option value=ratio>log-ratio, learner - sampler</option>
<option value=version>version</option>
<option value=sampler>sampler's log-probability</option>
</select></label></div>
<p class="soft keyboard">Keys: <kbd>←</kbd> <kbd>→</kbd> other step,
<kbd>Shift</kbd> with them: other token.</p>
<div id=scale class=scale></div>
<pre id=prompt></pre>
<div id=list></div>
<div class="bar details"><p id=token role=status></p>
<button id=before type=button aria-label="token before">◀</button>
<button id=after type=button aria-label="token after">▶</button></div>
</div><noscript><p>Completions need JavaScript.</p></noscript>
"""
