"""What is served to Prometheus, and that the dashboard asks for nothing else."""

import contextlib
import json
import re
import socket
import threading
import urllib.request

import pytest
from prometheus_client import parser

from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.observe import charts, grafana, metrics, prometheus
from offpolicy_rl.roles import sampler as sampler_role
from offpolicy_rl.sampler import worker
from tests.conftest import ROOT
from tests.observe import watch_test

DASHBOARD = ROOT / "launch" / "grafana_dashboard.json"
# Every number that a figure is made of, beside those of watch_test.
NAMES = {name for chart in charts.CHARTS if chart.gauge for name in chart.exported.values()}
PER_SAMPLER = dict.fromkeys([m.name for m in (*prometheus.HEARTBEAT, *prometheus.MEASURED)], 0.5)
HOST, NEW = watch_test.STATUS.samplers
STATUS = watch_test.STATUS._replace(samplers=(HOST._replace(stats=PER_SAMPLER | HOST.stats), NEW))
STATS = worker.Stats(room=4, busy=12, version=7, tokens=500, groups=60, seconds_scoring=2.5)


class Run:
  """A learner's news: a row at a time, then none."""

  def __init__(self, *rows: dict):
    self.rows, self.asked = list(rows), []

  def news(self, session: str, position: int) -> types.RunUpdate:
    self.asked.append((session, position))
    told = metrics.parse([json.dumps(self.rows.pop(0)).encode()]) if self.rows else []
    return types.RunUpdate(STATUS, not position, position + 10, told)


def scrape(url: str) -> dict[tuple, float]:
  """(name, its labels) -> value."""
  with urllib.request.urlopen(url, timeout=10) as reply:
    assert reply.headers["Content-Type"].startswith("text/plain")
    text = reply.read().decode()
  families = list(parser.text_string_to_metric_families(text))
  assert all(family.documentation for family in families)
  return {
    (sample.name, *sorted(sample.labels.items())): sample.value
    for family in families
    for sample in family.samples
  }


@pytest.fixture(scope="module")
def served():
  """Learner and sampler of one process: (url, the learner's run)."""
  registry, url = prometheus.serve("127.0.0.1", 0)
  every = dict.fromkeys(NAMES, 0.5)
  run = Run(
    watch_test.train(9, **every),
    watch_test.heldout(0, 0.25, 0) | every,
    watch_test.train(10, reward=0.75),
  )
  registry.register(prometheus.LearnerCollector(run.news))
  registry.register(prometheus.SamplerCollector(STATS, lambda: sampler_role.status(STATS, 16)))
  assert run.asked == []  # nothing was read to register it
  return url, [scrape(url) for _ in range(3)], run


def test_a_scrape_reads_what_is_new_and_keeps_what_it_knew(served):
  _, found, run = served
  assert run.asked == [("", 0), ("one", 10), ("one", 20)]
  learner = "offpolicy_rl_learner_"
  assert found[0][f"{learner}updates",] == 10 and found[2][f"{learner}updates",] == 11
  assert found[0][f"{learner}reward_mean",] == 0.5 and found[2][f"{learner}reward_mean",] == 0.75
  assert found[2][f"{learner}mismatch_nats", ("statistic", "max")] == 0.5  # not in the last row
  accuracy = (f"{learner}heldout_accuracy_ratio", ("measure", "pass@1"))
  assert accuracy not in found[0] and found[2][accuracy] == 0.5
  assert found[2][f"{learner}tokens_per_second",] == 300
  assert found[2][f"{learner}waiting_ratio",] == 0.25


def test_status_and_samplers(served):
  found, learner = served[1][2], "offpolicy_rl_learner_"
  info = ("offpolicy_rl_run_info", ("about", STATUS.about), ("run_id", "runs/[bold]a"))
  assert found[info] == 1
  assert found[f"{learner}tickets", ("state", "leased")] == 4
  assert found[f"{learner}ticket_events_total", ("event", "taken")] == 60
  assert (f"{learner}ticket_events_total", ("event", "queued")) not in found
  assert found[f"{learner}sampler_slots_busy", ("sampler", "host-1")] == 12
  assert found[f"{learner}sampler_silent_seconds", ("sampler", "new")] == 99
  assert (f"{learner}sampler_version", ("sampler", "new")) not in found
  own = "offpolicy_rl_sampler_"
  assert (found[f"{own}version",], found[f"{own}slots_busy",]) == (7, 12)
  assert (found[f"{own}tokens_total",], found[f"{own}groups_total",]) == (500, 60)
  assert found[f"{own}seconds_total", ("activity", "scoring")] == 2.5
  assert found["process_resident_memory_bytes",] > 1e6


def test_a_run_that_has_not_begun_and_several_who_ask_at_once():
  registry, url = prometheus.serve("127.0.0.1", 0)
  registry.register(prometheus.LearnerCollector(Run().news))
  found = []
  threads = [threading.Thread(target=lambda: found.append(scrape(url))) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert [f["offpolicy_rl_learner_updates",] for f in found] == [0.0] * 4


def test_who_connects_and_says_nothing_takes_few_places_and_not_for_long(monkeypatch):
  monkeypatch.setattr(prometheus._Handler, "timeout", 2.0)
  _, url = prometheus.serve("127.0.0.1", 0)
  port, before = int(url.rsplit(":", 1)[1].split("/")[0]), set(threading.enumerate())
  with contextlib.ExitStack() as stack:
    silent = [
      stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1.0))
      for _ in range(100)
    ]
    assert silent[-1].recv(1) == b""  # at once: there is no place for it
    assert 0 < len(set(threading.enumerate()) - before) <= prometheus._MAX_REQUESTS
    for one in silent:
      one.settimeout(5.0)
    assert all(one.recv(1) == b"" for one in silent)  # the first ones when their time is over
    assert scrape(url)


def test_figures_are_served_on_ipv6_too():
  _, url = prometheus.serve("::1", 0)
  assert url.startswith("http://[::1]:") and scrape(url)


@pytest.mark.parametrize("role", ["learner", "sampler"])
def test_a_taken_port_is_refused_before_anything_else(role, capsys, tmp_path):
  ours = ["--config=configs/test.py", f"--run_dir={tmp_path / 'run'}"]
  ours = ours if role == "learner" else ["--learner=127.0.0.1:1"]
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    assert main.main([role, *ours, f"--metrics_port={port}"]) == 2
  said = capsys.readouterr().err
  assert f"--metrics_port: got {port} on 127.0.0.1, expected a free port: it is taken" in said
  assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ the dashboard

# PromQL that stands beside names of metrics.
WORDS = {"by", "on", "group_left", "group_right", "sum", "rate", "deriv"}


def asked_for(expression: str) -> tuple[set[str], set[str]]:
  """(metrics, labels) that an expression names; what is neither known nor PromQL is a metric."""
  labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expression))
  for inner in re.findall(r"(?:by|on|group_left|group_right)\s*\(([^)]*)\)", expression):
    labels |= set(re.findall(r"\w+", inner))
  bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
  bare = re.sub(r"\b(by|on|group_left|group_right)\s*\([^)]*\)", " ", bare)
  return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - WORDS, labels


def test_expressions_are_taken_apart():
  assert asked_for('rate(a_total{x=~"$y",z="q"}[1m]) / on (i) group_right () b') == (
    {"a_total", "b"},
    {"x", "z", "i"},
  )


def test_the_dashboard_asks_for_figures_that_exist(served):
  exported: dict[str, set[str]] = {}
  for name, *labels in set().union(*served[1]):
    exported.setdefault(name, {"instance", "job"}).update(label for label, _ in labels)
  dashboard = json.loads(DASHBOARD.read_text())
  panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
  used = set()
  for panel in panels:
    for target in panel["targets"]:
      names, labels = asked_for(target["expr"])
      legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
      assert names and names <= set(exported), target["expr"]
      assert labels | legend <= set().union(*(exported[name] for name in names)), target
      used |= names
  [query] = [v["query"] for v in dashboard["templating"]["list"] if v["name"] == "learner"]
  name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
  assert label in exported[name]
  assert used == {
    name for name in exported if re.match("offpolicy_rl_(learner|sampler)_.*", name)
  } - {
    "offpolicy_rl_sampler_version",
    "offpolicy_rl_sampler_slots",
    "offpolicy_rl_sampler_slots_busy",
  } | {"process_cpu_seconds_total", "process_resident_memory_bytes"}  # and shows all


def test_the_dashboard_is_the_one_that_the_catalogue_makes():
  assert DASHBOARD.read_text() == grafana.text(), (
    "run: python -m offpolicy_rl.observe.grafana > launch/grafana_dashboard.json"
  )
