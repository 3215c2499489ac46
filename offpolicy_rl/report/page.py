"""The page of one run."""

import html
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.observe import metrics
from offpolicy_rl.report import (
  catalogue,
  completions,
  configuration,
  document,
  figures,
  runs,
  samplers,
)
from offpolicy_rl.report.charts import number
from offpolicy_rl.report.runs import Run

_ALARMS = {
  "alarm/lambda_negative": "lambda is negative",
  "alarm/memorising": "the mean log-ratio is positive",
  "alarm/sampler": "one sampler's tokens are unlike the others'",
  "alarm/mismatch": "sampler and learner disagree about log-probabilities",
}
_HEATS = (
  ("lag/in_flight_histogram", "Lag in flight", "versions published from sampling to arrival"),
  ("lag/in_queue_histogram", "Lag in queue", "versions published from arrival to use"),
)
_WHOLE_LAG = ("lag/histogram", "Lag of every token", "versions from sampling to use")


def write(run_dir: pathlib.Path) -> pathlib.Path:
  """Reads a run's files and writes `report.html` beside them; works on an unfinished run, too.

  Raises:
    ConfigError: it is no run's directory.
  """
  run = runs.read(pathlib.Path(run_dir))
  path = pathlib.Path(run_dir) / "report.html"
  path.write_text(_page(run), encoding="utf-8")
  return path


class _Part(NamedTuple):
  """A section: text, charts, text; left out where it has none of them."""

  anchor: str
  title: str
  charts: Sequence[figures.Figure | None] = ()
  above: str = ""
  below: str = ""


def _page(run: Run) -> str:
  parts = [p for p in _parts(run) if any(p.charts) or p.above or p.below]
  sections = [
    document.section(p.anchor, p.title, p.above, document.grid(p.charts), p.below) for p in parts
  ]
  whole = [
    f"<header><h1>{html.escape(run.name)}</h1><p class=soft>{html.escape(runs.title(run.config))}"
    f"</p>{_tiles(run)}</header>",
    document.navigation([(p.anchor, p.title) for p in parts]),
    "<main>",
    *sections,
    "</main>",
  ]
  drawn = [figure for p in parts for figure in p.charts if figure]
  data = {"charts": [f.data for f in drawn], "completions": completions.shown(run.samples)}
  return document.page(run.name, whole, data)


def _parts(run: Run) -> list[_Part]:
  last = runs.last_step([run])
  of = lambda charts: [figures.of_run(chart, run, last) for chart in charts]
  return [
    _Part("results", "Results", of(catalogue.RESULTS), above=_phases(run)),
    _Part("lag", "Lag", _lag(run, last) + of(catalogue.LAG)),
    _Part("objective", "Objective", of(catalogue.OBJECTIVE)),
    _Part("agreement", "Policy against sampler", of(catalogue.AGREEMENT), below=_alarms(run)),
    _Part("samplers", "Samplers", below=samplers.table(run.rows[metrics.TRAIN])),
    _Part("time", "Throughput and waiting", of(catalogue.THROUGHPUT)),
    _Part("left-out", "Left out", _filtered(run, last), below=_left_out(run)),
    _Part("completions", "Completions", below=_BROWSER if run.samples else _NO_COMPLETIONS),
    _Part("configuration", "Configuration", below=configuration.section(run.config)),
  ]


def _tiles(run: Run) -> str:
  """The few numbers one looks for first."""
  train, heldout = run.rows[metrics.TRAIN], run.rows[metrics.HELDOUT]
  tiles = [("steps", f"{len(train):,} of {run.config['learner']['steps']:,}")]
  own = [row for row in heldout if row["version"] >= 0]
  if own:
    ends = [own[0]["heldout/pass@1"], own[-1]["heldout/pass@1"]]
    tiles.append(("held-out pass@1", " → ".join(f"{end:.3f}" for end in ends[: len(own)])))
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
  seconds = sum(
    row.get(f"seconds/{part}", 0.0) for row in train for part in ("waiting", "step", "publishing")
  )
  if seconds:
    tiles.append(("time of all steps", duration(seconds)))
  cells = "".join(
    f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in tiles
  )
  return f"<dl class=tiles>{cells}</dl>"


def duration(seconds: float) -> str:
  """For people."""
  if seconds < 120:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _phases(run: Run) -> str:
  """Held-out accuracy before and after each phase."""
  found = [row for row in run.rows[metrics.HELDOUT] if row["phase"] != "during"]
  names = {
    "heldout/greedy": "greedy",
    "heldout/pass@1": "pass@1",
    "heldout/pass@k": "pass@k",
    "heldout/k": "k",
    "heldout/problems": "problems",
  }
  body = [
    [
      row["phase"],
      str(row["version"]) if row["version"] >= 0 else "none yet",
      *(_cell(row.get(name)) for name in names),
    ]
    for row in found
  ]
  head = ("held-out", "version", *names.values())
  return document.table(head, body, empty="No evaluation has finished.")


def _cell(value) -> str:
  return "" if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _lag(run: Run, last: int) -> list:
  """How lag is spread, over steps; runs that did not split it have one picture."""
  found = [figures.heat_of_run(*heat, run, last) for heat in _HEATS]
  return found if any(found) else [figures.heat_of_run(*_WHOLE_LAG, run, last)]


def _alarms(run: Run) -> str:
  train = run.rows[metrics.TRAIN]
  counts = {text: sum(row.get(name, 0) > 0 for row in train) for name, text in _ALARMS.items()}
  rows = [[text, f"{n:,} of {len(train):,}"] for text, n in counts.items() if n]
  return document.table(("alarm", "steps"), rows)


def _filtered(run: Run, last: int) -> list:
  lengths = _lengths(run)
  if not lengths:
    return []
  lines = tuple(
    catalogue.Line(metrics.TRAIN, f"filtered/length/{n}", _up_to(n)) for n in sorted(lengths)
  )
  charts = (catalogue.FILTERED._replace(lines=lines), catalogue.FILTERED_REWARD)
  return [figures.of_run(chart, run, last) for chart in charts]


def _lengths(run: Run) -> Counter:
  """Replaced groups by their completions' mean length, as `replay/refill.py` rounds it up."""
  found = Counter()
  for row in run.rows[metrics.TRAIN]:
    found.update({int(n): count for n, count in row.get("filtered/by_length", {}).items()})
  return found


def _up_to(length: int) -> str:
  return f"{length // 2 + 1:,} to {length:,} tokens" if length > 1 else "1 token"


def _left_out(run: Run) -> str:
  """What training did without: groups by length, prompts; and what became of the tickets."""
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


_NO_COMPLETIONS = "<p class=soft>None were recorded yet.</p>"
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
<p class=soft>Keys: <kbd>←</kbd> <kbd>→</kbd> other step,
<kbd>Shift</kbd> with them: other token.</p>
<div id=scale class=scale></div>
<pre id=prompt></pre>
<p id=token class=token role=status></p>
<div id=list></div>
</div><noscript><p>Completions need JavaScript.</p></noscript>
"""
