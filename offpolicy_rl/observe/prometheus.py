"""Metrics for Prometheus, made of a run's status and newest rows at each request.

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
from typing import Any, cast

import prometheus_client
from prometheus_client import core

from offpolicy_rl import types
from offpolicy_rl.observe import catalogue, charts, metrics

_PREFIX = "offpolicy_rl_"
_MAX_REQUESTS = 16  # at a time
_SECONDS = 10.0  # timeout of a request
_STATES = {"queued": "queued", "leased": "out", "done": "waiting"}  # label -> name in the ledger
# One value per sampler: from its heartbeats, and measured by the learner on its completions.
HEARTBEAT = [
  metric._replace(meaning=f"{metric.meaning}, as the sampler says")
  for metric in catalogue.METRICS[catalogue.HEARTBEAT].values()
]
_MEASURED = "completions reward verdict length entropy log_ratio mismatch unlike"
MEASURED = [
  catalogue.METRICS[metrics.TRAIN][f"sampler/{name}"]._replace(name=name)
  for name in _MEASURED.split()
]

Family = core.Metric


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> core.GaugeMetricFamily:
  return core.GaugeMetricFamily(f"{_PREFIX}learner_{name}", text, labels=labels)


def _charts(newest: dict[str, dict]) -> Iterator[Family]:
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
    ("updates_wanted", "Updates of the entire run", status.num_steps),
    ("samplers", "Samplers with a recent heartbeat", len(status.samplers)),
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
  """Gauges labelled by sampler; the learner bounds the number of samplers."""
  for metric in (*HEARTBEAT, *MEASURED):
    gauge = _gauge(f"sampler_{metric.name}", metric.meaning, ("sampler",))
    for sampler in status.samplers:
      if metric.name in sampler.stats:
        gauge.add_metric([sampler.name], sampler.stats[metric.name])
    yield gauge
  silent = _gauge("sampler_silent_seconds", "Since a sampler's last heartbeat", ("sampler",))
  for sampler in status.samplers:
    silent.add_metric([sampler.name], sampler.silent_seconds)
  yield silent


class LearnerCollector:
  """Reads a run's status and newest rows at each request."""

  def __init__(self, update_since: Callable[[str, int], types.RunUpdate]):
    """`update_since`: called with (session, position)."""
    self._update_since, self._session, self._position = update_since, "", 0
    self._newest: dict[str, dict] = {}
    self._lock = threading.Lock()  # for concurrent requests

  def describe(self) -> list:
    """Returns nothing: registering must not read a run that has not started."""
    return []

  def collect(self) -> Iterator[Family]:
    """Yields every family."""
    with self._lock:
      update = self._update_since(self._session, self._position)
      self._session, self._position = update.status.session, update.position
      self._newest = newest = metrics.newest({} if update.reset else self._newest, update.rows)
    yield from _status(update.status, newest)
    yield from _charts(newest)
    yield from _samplers(update.status)


class SamplerCollector:
  """Reads a sampler's totals and state at each request."""

  def __init__(self, stats: object, status: Callable[[], dict[str, float]]):
    """`stats`: worker.Stats, the totals; `status`: returns version, slots, slots_busy."""
    self._stats, self._status = stats, status

  def describe(self) -> list:
    return []

  def collect(self) -> Iterator[Family]:
    """Yields every family."""
    known = catalogue.METRICS[catalogue.HEARTBEAT]
    for name, value in self._status().items():
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
    """Answers a request; a client that is silent or disconnects is no error."""
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
    super().__init__(cast(Any, address), _Handler)

  def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
    """Refuses a request while _MAX_REQUESTS are being answered."""
    return self._places.acquire(blocking=False)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._places.release()


def serve(host: str, port: int) -> tuple[prometheus_client.CollectorRegistry, str]:
  """Serves GET /metrics in threads until the process ends.

  Returns:
    (registry to add collectors to, URL); it starts with CPU and memory of this process.

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
  atexit.register(server.shutdown)  # a request during interpreter exit would print a traceback
  name = f"[{host}]" if ":" in host else host
  return registry, f"http://{name}:{server.server_port}/metrics"
