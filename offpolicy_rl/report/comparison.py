"""Several runs on one page: their curves on top of one another, and where they differ."""

import html
import pathlib
from collections.abc import Sequence

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.observe import metrics
from offpolicy_rl.report import catalogue, configuration, document, figures, runs
from offpolicy_rl.report.charts import COLORS, number
from offpolicy_rl.report.page import duration
from offpolicy_rl.report.runs import Run

_NO_STEP = "<p class=soft>No step was made.</p>"
_LATE = 0.1  # share of the steps that counts as the end
# Of training rows: label, metric; means over the end.
_LATE_MEANS = (
  ("reward", "reward"),
  ("entropy", "entropy"),
  ("lag", "lag/mean"),
  ("log-ratio", "log_ratio/mean"),
  ("lambda", "lambda_hat"),
  ("update, s", "seconds/step"),
  ("waiting, s", "seconds/waiting"),
  ("samplers' tokens/s", "sampler/tokens_per_second"),
)


def compare(run_dirs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
  """Writes a page about several runs to `path`.

  Raises:
    ConfigError: one is no run's directory, one is named twice, or there are too many.
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
  drawn = [figures.of_runs(chart, named, last) for chart in catalogue.COMPARED]
  names = [name for name, _ in named]
  differing = configuration.differences([runs.keys(run.config) for _, run in named])
  same = "<p class=soft>All keys are the same.</p>"
  sections = [
    document.section("table", "At the end", _final(named)),
    document.section("curves", "Curves", document.grid(drawn) or _NO_STEP),
    document.section(
      "configuration",
      "Where their configurations differ",
      configuration.table(("key", *names), differing) if differing else same,
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


def _switches(named: Sequence[tuple[str, Run]]) -> str:
  """The legend, whose boxes take runs off the charts."""
  rows = "".join(
    f'<li><label><input type=checkbox class=shown data-run="r{n}" checked>'
    f'<i class="c{n}"></i><b>{html.escape(name)}</b></label> '
    f"<span class=soft>{html.escape(runs.title(run.config))}</span></li>"
    for n, (name, run) in enumerate(named)
  )
  return f"<ul class=runs>{rows}</ul>"


def _final(named: Sequence[tuple[str, Run]]) -> str:
  """Where each run has got to."""
  head = [
    "run",
    "steps",
    "pass@1",
    "± 95 %",
    "greedy",
    "pass@k",
    *(label for label, _ in _LATE_MEANS),
    "largest mismatch",
    "time",
  ]
  note = (
    "<p class=soft>Held-out accuracy: the newest evaluation. Mismatch and time: of the whole run. "
    "Others: means over the last tenth of its steps.</p>"
  )
  return document.table(head, [[name, *_ending(run)] for name, run in named]) + note


def _ending(run: Run) -> list[str]:
  train, heldout = run.rows[metrics.TRAIN], run.rows[metrics.HELDOUT]
  newest = heldout[-1] if heldout else {}
  show = lambda value, form: "" if value is None else f"{value:{form}}"
  spread = newest.get("heldout/pass@1_stderr")
  late = train[-max(1, round(_LATE * len(train))) :]
  means = []
  for _, name in _LATE_MEANS:
    values = [row[name] for row in late if name in row]
    means.append(number(sum(values) / len(values)) if values else "")
  gaps = [row["mismatch/max"] for row in train if "mismatch/max" in row]
  seconds = [
    row.get(f"seconds/{part}", 0.0) for row in train for part in ("waiting", "step", "publishing")
  ]
  return [
    f"{len(train):,}",
    show(newest.get("heldout/pass@1"), ".3f"),
    show(None if spread is None else 1.96 * spread, ".3f"),
    show(newest.get("heldout/greedy"), ".3f"),
    show(newest.get("heldout/pass@k"), ".3f"),
    *means,
    number(max(gaps)) if gaps else "",
    duration(sum(seconds)),
  ]
