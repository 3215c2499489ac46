"""The Grafana dashboard of what `prometheus.py` exports, made of the catalogue.

Command:  python -m offpolicy_rl.observe.grafana > launch/grafana_dashboard.json
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.observe import catalogue, charts, prometheus

_WIDTH = 24  # of a dashboard
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_UNITS = {"share": "percentunit", "seconds": "s", "bytes": "bytes"}  # others are plain numbers


class Panel(NamedTuple):
  """A panel; `@NAME` in the expressions of `targets` is a gauge of the selected learner."""

  title: str
  about: str
  targets: dict[str, str]  # legend -> expression
  unit: str = "none"


_STATS = (
  Panel("Updates", "of the entire run", {"made": "@updates", "wanted": "@updates_wanted"}),
  Panel(
    "Held-out pass@1",
    "share of held-out problems solved",
    {"pass@1": '@heldout_accuracy_ratio{measure="pass@1"}'},
    "percentunit",
  ),
  Panel("Samplers", "with a recent heartbeat", {"samplers": "@samplers"}),
  Panel(
    "Time left",
    "by the updates of the last ten minutes",
    {"left": "(@updates_wanted - @updates) / deriv(@updates[10m])"},
    "s",
  ),
  Panel("Alarms", "that are on", {"on": "sum(@alarm)"}),
)
_TICKETS = (
  Panel(
    "Versions behind",
    "the learner's newest minus the sampler's",
    {"{{sampler}}": "@updates - on (instance) group_right () @sampler_version"},
  ),
  Panel(
    "Silence", "since a sampler's last heartbeat", {"{{sampler}}": "@sampler_silent_seconds"}, "s"
  ),
  Panel("Tickets", "that no step has taken", {"{{state}}": "@tickets"}),
  Panel(
    "Tickets per second", "what became of them", {"{{event}}": "rate(@ticket_events_total[1m])"}
  ),
)
_PROCESSES = (
  Panel("CPU", "cores in use", {"{{instance}}": "rate(process_cpu_seconds_total[1m])"}),
  Panel("Memory", "resident", {"{{instance}}": "process_resident_memory_bytes"}, "bytes"),
  Panel(
    "A sampler's time",
    "of samplers with a --metrics_port; threads overlap",
    {"{{instance}} {{activity}}": "rate(offpolicy_rl_sampler_seconds_total[1m])"},
    "percentunit",
  ),
  Panel(
    "Tokens, groups per second",
    "of samplers with a --metrics_port",
    {
      "{{instance}} tokens": "rate(offpolicy_rl_sampler_tokens_total[1m])",
      "{{instance}} groups": "rate(offpolicy_rl_sampler_groups_total[1m])",
    },
  ),
)


def _of_chart(chart: charts.Chart) -> Panel:
  legend = f"{{{{{chart.label}}}}}" if chart.label else next(iter(chart.exported))
  unit = chart.metric.unit
  words = f"{chart.about} ({unit})" if unit and unit not in _UNITS else chart.about
  better = chart.metric.better
  about = f"{words}; {better}" if better else words
  return Panel(chart.title, about, {legend: f"@{chart.gauge}"}, _UNITS.get(unit, "none"))


def _of_sampler(metric: catalogue.Metric) -> Panel:
  title = metric.name.replace("_", " ").capitalize()
  about, unit = f"of a sampler: {metric.meaning}", _UNITS.get(metric.unit, "none")
  return Panel(title, about, {"{{sampler}}": f"@sampler_{metric.name}"}, unit)


def _expression(text: str) -> str:
  """Replaces @NAME by the full name of the gauge, for the selected learner."""
  labels = lambda match: ",".join(filter(None, ('instance=~"$learner"', match[2])))
  gauge = lambda match: f"offpolicy_rl_learner_{match[1]}{{{labels(match)}}}"
  return re.sub(r"@(\w+)(?:{([^}]*)})?", gauge, text)


def _drawn(panel: Panel, kind: str, number: int, place: dict) -> dict:
  targets = [
    {"expr": _expression(text), "legendFormat": legend, "refId": ref, "datasource": _SOURCE}
    for ref, (legend, text) in zip("AB", panel.targets.items(), strict=False)
  ]
  return {
    "type": kind,
    "title": panel.title,
    "description": panel.about,
    "id": number,
    "datasource": _SOURCE,
    "gridPos": place,
    "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
    "targets": targets,
  }


def dashboard() -> dict:
  """The dashboard as Grafana imports it."""
  rows: list[tuple[str, str, int, int, Sequence[Panel]]] = [("Run", "stat", 4, 4, _STATS)]
  for section, drawn in charts.SECTIONS.items():
    rows.append((section, "timeseries", 8, 8, [_of_chart(c) for c in drawn if c.gauge]))
  samplers = [*_TICKETS, *map(_of_sampler, (*prometheus.HEARTBEAT, *prometheus.MEASURED))]
  rows += [("Samplers and tickets", "timeseries", 6, 8, samplers)]
  rows += [("Processes", "timeseries", 6, 8, _PROCESSES)]
  panels, top = [], 0
  for title, kind, width, height, content in rows:
    head = {"type": "row", "title": title, "collapsed": False, "panels": []}
    panels.append(head | {"id": len(panels) + 1, "gridPos": _place(0, top, _WIDTH, 1)})
    columns = _WIDTH // width
    for i, panel in enumerate(content):
      place = _place(i % columns * width, top + 1 + i // columns * height, width, height)
      panels.append(_drawn(panel, kind, len(panels) + 1, place))
    top += 1 + -(-len(content) // columns) * height
  variables = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    {
      "name": "learner",
      "label": "Learner",
      "type": "query",
      "datasource": _SOURCE,
      "query": "label_values(offpolicy_rl_run_info, instance)",
      "refresh": 2,
      "includeAll": True,
      "multi": False,
      "current": {},
    },
  ]
  return {
    "title": "offpolicy_rl",
    "uid": "offpolicy-rl",
    "schemaVersion": 39,
    "version": 1,
    "editable": True,
    "refresh": "10s",
    "time": {"from": "now-1h", "to": "now"},
    "tags": ["offpolicy_rl"],
    "timezone": "browser",
    "annotations": {"list": []},
    "links": [],
    "templating": {"list": variables},
    "panels": panels,
  }


def _place(x: int, y: int, width: int, height: int) -> dict:
  return {"h": height, "w": width, "x": x, "y": y}


def text() -> str:
  return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
  print(text(), end="")
