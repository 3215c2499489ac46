"""Every metric is in the catalogue once, and the catalogue has no others."""

import ast
import re

from offpolicy_rl.observe import catalogue, charts, metrics
from offpolicy_rl.observe.catalogue import METRICS
from tests.conftest import ROOT

PACKAGE = ROOT / "offpolicy_rl"
WRITERS = ("evaluation", "learner", "losses", "model", "replay", "roles", "sampler")
PREFIXES = {name.partition("/")[0] + "/" for name in METRICS[metrics.TRAIN] if "/" in name}


def strings() -> set[str]:
  """Every string in the folders whose code writes metrics; {...} of an f-string is a *."""
  texts = set()
  for path in (path for folder in WRITERS for path in (PACKAGE / folder).rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts.add(node.value)
      elif isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "*" for p in node.values]
        texts.add("".join(map(str, parts)))
      elif isinstance(node, ast.keyword):
        texts.add(node.arg or "")
  return texts


def test_a_metric_that_is_written_is_in_the_catalogue():
  """By the form of its name: `lag/mean`, where `lag/` begins a metric that is known."""
  known = METRICS[metrics.TRAIN].keys() | METRICS[metrics.HELDOUT].keys()
  prefixes = PREFIXES | {"heldout/"}
  names = {text for text in strings() if re.fullmatch(r"[a-z_]+/[a-z_@0-9]+", text)}
  written = {name for name in names if name.startswith(tuple(prefixes))}
  assert written and written <= known, sorted(written - known)


def test_what_the_catalogue_names_is_written():
  texts = strings()
  patterns = [re.compile(re.escape(t).replace(r"\*", ".+")) for t in texts if "/*" in t]
  for kind in (metrics.TRAIN, metrics.HELDOUT, metrics.TASK, metrics.WARM_START):
    for name in METRICS[kind]:
      assert name in texts or any(p.fullmatch(name) for p in patterns), name


def test_charts_and_figures_show_metrics_of_the_catalogue_in_one_unit():
  for chart in charts.CHARTS:
    units = {catalogue.metric(chart.kind, name).unit for name in chart.lines.values()}
    assert len(units) == 1, chart.title
    assert set(chart.compared) <= set(chart.lines) and chart.about, chart.title
    assert all(name == "" or catalogue.metric(chart.kind, name) for name in chart.spread)
  for shown in charts.KEY_METRICS:
    assert catalogue.metric(shown.kind, shown.name)
  for drawn in charts.SECTIONS.values():
    assert len({chart.title for chart in drawn}) == len(drawn)


def test_every_metric_says_what_it_is():
  for known in METRICS.values():
    for metric in known.values():
      assert metric.meaning and metric.better in ("", catalogue.HIGHER, catalogue.LOWER)
