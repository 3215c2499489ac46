"""The page that compares runs: their curves in common charts, and where they differ."""

import html
import pathlib
from collections.abc import Sequence

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.observe import charts as charts_lib
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.observe.charts import Chart
from offpolicy_rl.report import configuration, document, figures, runs
from offpolicy_rl.report.runs import Run
from offpolicy_rl.report.svg import COLORS, number

_NO_STEP = "<p class=soft>No step was made.</p>"
_LATE = 0.1  # share of the steps that counts as the end of a run
_KEY_METRICS = [metric for metric in charts_lib.KEY_METRICS if metric.kind == metrics.TRAIN]


def compare(run_dirs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
  """Writes a page about several runs to `path`.

  Raises:
    ConfigError: one is no run's directory or is given twice, or there are too many.
  """
  if len(run_dirs) > len(COLORS):
    raise ConfigError(f"--run_dir: got {len(run_dirs)} runs, expected at most {len(COLORS)}")
  if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
    raise ConfigError("--run_dir: got the same run twice, expected different ones")
  named = list(zip(runs.names(run_dirs), map(runs.read, run_dirs), strict=True))
  path.write_text(_page(named), encoding="utf-8")
  return path


def _page(named: Sequence[tuple[str, Run]]) -> str:
  last = runs.last_step([run for _, run in named])
  drawn = [figures.draw_runs(chart, named, last) for chart in _charts()]
  names = [name for name, _ in named]
  differing = configuration.differences([runs.keys(run.config) for _, run in named])
  sections = [
    document.section("table", "At the end", _final(named)),
    document.section("curves", "Curves", document.grid(drawn) or _NO_STEP),
    document.section(
      "configuration",
      "Where their configurations differ",
      document.table(("key", *names), differing, empty="All keys are the same.", code=True),
    ),
  ]
  anchors = [("table", "At the end"), ("curves", "Curves"), ("configuration", "Configuration")]
  title = f"{len(named)} runs"
  parts = [
    f"<header><h1>{title}</h1>{_switches(named)}</header>",
    document.navigation(anchors),
    "<main>",
    *sections,
    "</main>",
  ]
  data = {"charts": [f.data for f in drawn if f], "completions": {"groups": [], "range": 1.0}}
  return document.page(title, parts, data)


def _charts() -> list[Chart]:
  """Charts with a single line, which every run draws once."""
  single = []
  for chart in charts_lib.CHARTS:
    for label in chart.compared:
      title = chart.title if len(chart.compared) == 1 else f"{chart.title}, {label}"
      spread = chart.spread if label == next(iter(chart.lines)) else ("", "")
      single.append(
        chart._replace(
          title=title,
          lines={label: chart.lines[label]},
          meaning="",
          stacked=False,
          spread=spread if chart.kind == metrics.HELDOUT else ("", ""),
        )
      )
  return single


def _switches(named: Sequence[tuple[str, Run]]) -> str:
  rows = "".join(
    f'<li><label><input type=checkbox class=shown data-run="r{n}" checked>'
    f'<i class="c{n}"></i><b>{html.escape(name)}</b></label> '
    f"<span class=soft>{html.escape(runs.title(run.config))}</span></li>"
    for n, (name, run) in enumerate(named)
  )
  return f"<ul class=runs>{rows}</ul>"


def _final(named: Sequence[tuple[str, Run]]) -> str:
  head = ["run", "steps", "pass@1", "± 95 %", "greedy", "pass@k"]
  head += [*(metric.label for metric in _KEY_METRICS), "largest of all", "time"]
  note = (
    "<p class=soft>Held-out accuracy: the newest evaluation. Largest mismatch of all, and time: of "
    "the entire run. Others: means over the last tenth of its steps.</p>"
  )
  return document.table(head, [[name, *_ending(run)] for name, run in named]) + note


def _ending(run: Run) -> list[str]:
  train, heldout = run.rows[metrics.TRAIN], run.rows[metrics.HELDOUT]
  newest = heldout[-1] if heldout else {}
  show = lambda value: "" if value is None else f"{value:.3f}"
  spread = newest.get("heldout/pass@1_stderr")
  late = train[-max(1, round(_LATE * len(train))) :]
  means = []
  for metric in _KEY_METRICS:
    values = [row[metric.name] for row in late if metric.name in row]
    means.append(format(sum(values) / len(values), metric.format) if values else "")
  gaps = [row["mismatch/max"] for row in train if "mismatch/max" in row]
  return [
    f"{len(train):,}",
    show(newest.get("heldout/pass@1")),
    show(None if spread is None else 1.96 * spread),
    show(newest.get("heldout/greedy")),
    show(newest.get("heldout/pass@k")),
    *means,
    number(max(gaps)) if gaps else "",
    terminal.clock(sum(row.get("learner/seconds", 0.0) for row in train)),
  ]
