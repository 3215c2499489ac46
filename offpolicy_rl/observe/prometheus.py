"""Metrics for Prometheus, made of a run's newest rows and its status when it asks.

Names end in their unit; `ratio` is between 0 and 1. launch/grafana_dashboard.json shows them.
"""

import atexit
import contextlib
import errno
import socket
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import core

from offpolicy_rl import types
from offpolicy_rl.observe import catalogue, charts, metrics

_PREFIX = "offpolicy_rl_"
_MAX_REQUESTS = 16  # at a time
_SECONDS = 10.0  # for a request to arrive


_STATES = {"queued": "queued", "leased": "out", "done": "waiting"}  # label -> the ledger's word
# One value per sampler: of its heartbeats, and measured by the learner on its completions.
HEARTBEAT = [
  metric._replace(meaning=f"{metric.meaning}, as the sampler says")
  for metric in catalogue.METRICS[catalogue.HEARTBEAT].values()
]
MEASURED = [
  catalogue.METRICS[metrics.TRAIN][f"sampler/{name}"]._replace(name=name)
  for name in (
    "completions",
    "reward",
    "verdict",
    "length",
    "entropy",
    "log_ratio",
    "mismatch",
    "unlike",
  )
]

Family = core.Metric


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> core.GaugeMetricFamily:
  return core.GaugeMetricFamily(f"{_PREFIX}learner_{name}", text, labels=labels)


def _charts(newest: dict[str, dict]) -> Iterator[Family]:
  """A gauge for every chart of the catalogue that has one."""
  for chart in (chart for chart in charts.CHARTS if chart.gauge):
    gauge = _gauge(chart.gauge, chart.about, (chart.label,) if chart.label else ())
    row = newest.get(chart.kind, {})
    for label, name in chart.exported.items():
      if name in row:
        gauge.add_metric([label] if chart.label else [], row[name])
    yield gauge


def _status(status: types.RunStatus, newest: dict[str, dict]) -> Iterator[Family]:
  run = core.InfoMetricFamily(f"{_PREFIX}run", "Which run this is")
  run.add_metric([], {"run_id": status.run_id, "about": status.about})
  yield run
  step = newest[metrics.TRAIN]["step"] + 1 if metrics.TRAIN in newest else 0
  for name, text, value in (
    ("updates", "Updates made", step),
    ("updates_wanted", "Updates of the whole run", status.num_steps),
    ("samplers", "Samplers heard of lately", len(status.samplers)),
  ):
    yield core.GaugeMetricFamily(f"{_PREFIX}learner_{name}", text, value=value)
  tickets = _gauge("tickets", "Tickets that no step has taken, by where they are", ("state",))
  events = core.CounterMetricFamily(
    f"{_PREFIX}learner_ticket_events", "What became of tickets since the start", labels=("event",)
  )
  for label, name in _STATES.items():
    tickets.add_metric([label], status.tickets[name])
  for name, count in status.tickets.items():
    if name not in _STATES.values():
      events.add_metric([name], count)
  yield from (tickets, events)


def _samplers(status: types.RunStatus) -> Iterator[Family]:
  """One label, the sampler's name; how many there can be is bounded by the learner."""
  for metric in (*HEARTBEAT, *MEASURED):
    gauge = _gauge(f"sampler_{metric.name}", metric.meaning, ("sampler",))
    for sampler in status.samplers:
      if metric.name in sampler.stats:
        gauge.add_metric([sampler.name], sampler.stats[metric.name])
    yield gauge
  silent = _gauge("sampler_silent_seconds", "Since a sampler's last sign of life", ("sampler",))
  for sampler in status.samplers:
    silent.add_metric([sampler.name], sampler.silent_seconds)
  yield silent


class LearnerCollector:
  """A run's newest rows and its status, read when Prometheus asks."""

  def __init__(self, news: Callable[[str, int], types.News]):
    """`news`: (session, position) -> what is new since."""
    self._news, self._session, self._position = news, "", 0
    self._newest: dict[str, dict] = {}
    self._lock = threading.Lock()  # several may ask at once

  def describe(self) -> list:
    """Nothing: registering must not read a run that has not begun."""
    return []

  def collect(self) -> Iterator[Family]:
    """Yields every family."""
    with self._lock:
      news = self._news(self._session, self._position)
      self._session, self._position = news.status.session, news.position
      self._newest = newest = metrics.newest({} if news.anew else self._newest, news.rows)
    yield from _status(news.status, newest)
    yield from _charts(newest)
    yield from _samplers(news.status)


class SamplerCollector:
  """A sampler's totals and its state."""

  def __init__(self, stats: object, standing: Callable[[], dict[str, float]]):
    """`stats`: totals, worker.Stats; `standing`: version, slots, slots_busy."""
    self._stats, self._standing = stats, standing

  def describe(self) -> list:
    """Nothing, as LearnerCollector's."""
    return []

  def collect(self) -> Iterator[Family]:
    """Yields every family."""
    known = catalogue.METRICS[catalogue.HEARTBEAT]
    for name, value in self._standing().items():
      if name in ("version", "slots", "slots_busy"):
        yield core.GaugeMetricFamily(f"{_PREFIX}sampler_{name}", known[name].meaning, value=value)
    for name, text in (
      ("tokens", "Completion tokens sampled and pushed"),
      ("groups", "Groups pushed"),
    ):
      value = getattr(self._stats, name)
      yield core.CounterMetricFamily(f"{_PREFIX}sampler_{name}", text, value=value)
    seconds = core.CounterMetricFamily(
      f"{_PREFIX}sampler_seconds", "Where its time went; threads overlap", labels=("activity",)
    )
    for activity in ("waiting", "weights", "generating", "scoring", "pushing"):
      seconds.add_metric([activity], getattr(self._stats, f"seconds_{activity}"))
    yield seconds


class AddressError(ValueError):
  """--metrics_port can't be listened on."""


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
  timeout = _SECONDS

  def handle(self) -> None:
    """Answers a request; a client that is silent or gone is no error."""
    with contextlib.suppress(TimeoutError, ConnectionError):
      super().handle()

  def log_message(self, format: str, *args) -> None:
    """Logs nothing."""


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
  """A thread per request, few at a time: file descriptors are needed elsewhere."""

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, host: str, port: int):
    [(self.address_family, *_, address), *_] = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    self._places = threading.BoundedSemaphore(_MAX_REQUESTS)
    super().__init__(address, _Handler)

  def verify_request(self, *_) -> bool:
    """Whether fewer than the most requests are being answered."""
    return self._places.acquire(blocking=False)

  def process_request_thread(self, *request) -> None:
    """Answers a request in its thread."""
    try:
      super().process_request_thread(*request)
    finally:
      self._places.release()


def serve(host: str, port: int) -> tuple[prometheus_client.CollectorRegistry, str]:
  """Answers GET /metrics in threads for as long as the process lives.

  Returns:
    (registry to add collectors to, URL); at first it has this process's CPU and memory.

  Raises:
    AddressError: the port is taken, or it is no address of this machine.
  """
  registry = prometheus_client.CollectorRegistry()
  prometheus_client.ProcessCollector(registry=registry)
  try:
    server = _Server(host, port)
  except OSError as error:
    why = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
    raise AddressError(
      f"--metrics_port: got {port} on {host}, expected a free port: {why}"
    ) from None
  server.set_app(prometheus_client.make_wsgi_app(registry))
  threading.Thread(target=server.serve_forever, daemon=True, name="prometheus").start()
  atexit.register(server.shutdown)  # a request while the interpreter ends would print a traceback
  name = f"[{host}]" if ":" in host else host
  return registry, f"http://{name}:{server.server_port}/metrics"
