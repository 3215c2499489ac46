"""Figures for Prometheus, made when it asks: what a run's newest rows and its status say.

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
from typing import NamedTuple

import prometheus_client
from prometheus_client import core

from offpolicy_rl import types
from offpolicy_rl.observe import metrics

_PREFIX = "offpolicy_rl_"
_AT_ONCE = 16  # requests
_SECONDS = 10.0  # for a request to be said


class Figure(NamedTuple):
  """A gauge whose values stand in rows of metrics.jsonl."""

  name: str
  help: str
  kind: str  # of row
  values: dict[str, str]  # label value -> name in the row
  label: str = ""  # its name; "" = one value, without labels


_ONE = ""  # label value of a figure without labels
_FIGURES = (
  Figure("reward_mean", "Reward over the completions of a batch", metrics.TRAIN, {_ONE: "reward"}),
  Figure(
    "heldout_accuracy_ratio",
    "Share of held-out problems solved",
    metrics.HELDOUT,
    {"pass@1": "heldout/pass@1", "greedy": "heldout/greedy", "pass@k": "heldout/pass@k"},
    "measure",
  ),
  Figure(
    "entropy_nats",
    "Entropy per completion token",
    metrics.TRAIN,
    {"all": "entropy", "correct": "entropy_correct"},
    "completions",
  ),
  Figure("loss", "Loss of a batch", metrics.TRAIN, {_ONE: "loss"}),
  Figure("gradient_norm", "Global norm before clipping", metrics.TRAIN, {_ONE: "grad_norm"}),
  Figure(
    "lag_versions",
    "Updates between sampling a token and its use",
    metrics.TRAIN,
    {
      "mean": "lag/mean",
      "max": "lag/max",
      "in_flight_mean": "lag/in_flight_mean",
      "in_queue_mean": "lag/in_queue_mean",
    },
    "statistic",
  ),
  Figure(
    "lambda",
    "Mean of A - beta u; below 0 the target is sharper than exponential",
    metrics.TRAIN,
    {_ONE: "lambda_hat"},
  ),
  Figure(
    "regime_ratio",
    "Share of groups whose induced target is of a kind",
    metrics.TRAIN,
    {
      "pessimistic": "regime/positive",
      "exponential": "regime/boundary",
      "sharper": "regime/negative",
    },
    "regime",
  ),
  Figure(
    "mismatch_nats",
    "Learner against sampler logprob of a token, same version",
    metrics.TRAIN,
    {"mean": "mismatch/mean", "max": "mismatch/max"},
    "statistic",
  ),
  Figure(
    "groups_without_signal_ratio",
    "Share of groups whose rewards are all equal",
    metrics.TRAIN,
    {_ONE: "groups_without_signal"},
  ),
  Figure(
    "step_seconds",
    "Where the time of the last step went",
    metrics.TRAIN,
    {"waiting": "seconds/waiting", "update": "seconds/step", "publishing": "seconds/publishing"},
    "part",
  ),
  Figure(
    "compiling_seconds",
    "Compilation during the last step",
    metrics.TRAIN,
    {_ONE: "seconds/compiling"},
  ),
  Figure(
    "samplers_tokens_per_second",
    "Completion tokens of all samplers",
    metrics.TRAIN,
    {_ONE: "sampler/tokens_per_second"},
  ),
  Figure(
    "flops_per_second", "Model flops of the update", metrics.TRAIN, {_ONE: "flops_per_second"}
  ),
  Figure(
    "mfu_ratio", "Of the devices' peak flops, where it is known", metrics.TRAIN, {_ONE: "mfu"}
  ),
  Figure("weights_bytes", "Of one version, sent in full", metrics.TRAIN, {_ONE: "weights/bytes"}),
  Figure(
    "alarm",
    "1 while a batch looks wrong",
    metrics.TRAIN,
    {
      "mismatch": "alarm/mismatch",
      "sampler": "alarm/sampler",
      "lambda_negative": "alarm/lambda_negative",
      "memorising": "alarm/memorising",
    },
    "alarm",
  ),
  Figure(
    "left_out",
    "Prompts and groups that the last step did without",
    metrics.TRAIN,
    {"unanswerable": "set_aside", "poisoned": "poisoned_groups"},
    "reason",
  ),
  Figure(
    "verifier_failures",
    "Completions of the last batch on which the verifier failed",
    metrics.TRAIN,
    {_ONE: "verifier_failures"},
  ),
)
# What the learner measures of a sampler's completions in a batch, named like the metrics.
_MEASURED = {
  "reward": "Reward of its completions",
  "length": "Tokens of its completions",
  "entropy": "Entropy per token of its completions, in nats",
  "log_ratio": "Learner against sampler logprob of a token, in nats",
  "mismatch": "The same where the learner has the version that sampled it",
  "unlike": "1 while its tokens are unlike those of the other samplers",
}
_STATES = {"queued": "queued", "leased": "out", "done": "waiting"}  # label -> the ledger's word
# What a sampler says of itself in its heartbeats.
_SAID = {
  "version": "Version of the weights",
  "tokens_per_second": "Completion tokens",
  "slots": "Completions decoded side by side at most",
  "slots_busy": "Completions under way",
  "groups": "Groups pushed since its start",
}

Family = core.Metric


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> core.GaugeMetricFamily:
  return core.GaugeMetricFamily(f"{_PREFIX}learner_{name}", text, labels=labels)


def _of_rows(newest: dict[str, dict]) -> Iterator[Family]:
  for figure in _FIGURES:
    gauge = _gauge(figure.name, figure.help, (figure.label,) if figure.label else ())
    row = newest.get(figure.kind, {})
    for label, name in figure.values.items():
      if name in row:
        gauge.add_metric([label] if figure.label else [], row[name])
    yield gauge


def _of_pace(newest: dict[str, dict]) -> Iterator[Family]:
  pace = metrics.pace(newest[metrics.TRAIN]) if metrics.TRAIN in newest else {}
  for name, text, key in (
    ("tokens_per_second", "Tokens of the last step, prompts included", "tokens_per_second"),
    ("waiting_ratio", "Share of the last step's time spent waiting for groups", "waiting"),
  ):
    gauge = _gauge(name, text)
    if pace:
      gauge.add_metric([], pace[key])
    yield gauge


def _of_status(status: types.RunStatus, newest: dict[str, dict]) -> Iterator[Family]:
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


def _of_samplers(status: types.RunStatus) -> Iterator[Family]:
  """One label, its name; how many there can be is bounded by roles/pulse.py."""
  said = {name: f"{text}, as the sampler says" for name, text in _SAID.items()}
  for name, text in (said | _MEASURED).items():
    gauge = _gauge(f"sampler_{name}", text, ("sampler",))
    for sampler in status.samplers:
      if name in sampler.stats:
        gauge.add_metric([sampler.name], sampler.stats[name])
    yield gauge
  silent = _gauge("sampler_silent_seconds", "Since a sampler's last sign of life", ("sampler",))
  for sampler in status.samplers:
    silent.add_metric([sampler.name], sampler.silent_seconds)
  yield silent


class LearnerCollector:
  """What a learner tells; reads the rows that came since it was last asked."""

  def __init__(self, news: Callable[[str, int], types.News]):
    """`news`: (session, position) -> what is new."""
    self._news, self._session, self._position = news, "", 0
    self._newest: dict[str, dict] = {}
    self._asked = threading.Lock()  # several may ask at once

  def describe(self) -> list:
    """Nothing: registering must not read a run that has not begun."""
    return []

  def collect(self) -> Iterator[Family]:
    """As prometheus_client wants it."""
    with self._asked:
      news = self._news(self._session, self._position)
      self._session, self._position = news.status.session, news.position
      self._newest = newest = metrics.newest(self._newest, news)
    yield from _of_status(news.status, newest)
    yield from _of_rows(newest)
    yield from _of_pace(newest)
    yield from _of_samplers(news.status)


class SamplerCollector:
  """What a sampler tells of itself."""

  def __init__(self, stats: object, standing: Callable[[], dict[str, float]]):
    """`stats`: totals, worker.Stats; `standing`: version, slots, slots_busy."""
    self._stats, self._standing = stats, standing

  def describe(self) -> list:
    """As LearnerCollector's."""
    return []

  def collect(self) -> Iterator[Family]:
    """As prometheus_client wants it."""
    for name, value in self._standing().items():
      if name in ("version", "slots", "slots_busy"):
        yield core.GaugeMetricFamily(f"{_PREFIX}sampler_{name}", _SAID[name], value=value)
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
  """The address of --metrics_port can't be had."""


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
  timeout = _SECONDS

  def handle(self):
    """One request; who says nothing, or leaves before the answer, is no error."""
    with contextlib.suppress(TimeoutError, ConnectionError):
      super().handle()

  def log_message(self, format, *args):
    """Nothing."""


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
  """A thread for each of a few requests at a time: descriptors are wanted for files."""

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, host: str, port: int):
    [(self.address_family, *_, address), *_] = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    self._places = threading.BoundedSemaphore(_AT_ONCE)
    super().__init__(address, _Handler)

  def verify_request(self, request, client_address) -> bool:
    """Whether there is a place for it."""
    return self._places.acquire(blocking=False)

  def process_request_thread(self, request, client_address) -> None:
    """In its thread."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._places.release()


def serve(host: str, port: int) -> tuple[prometheus_client.CollectorRegistry, str]:
  """Answers GET /metrics in threads of its own, for as long as the process lives.

  Returns:
    (registry for collectors to come, URL); until then there is this process's CPU and memory.

  Raises:
    AddressError: somebody else serves there, or it is no address of this machine.
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
  atexit.register(server.shutdown)  # who asks while the process ends would get it a traceback
  shown = f"[{host}]" if ":" in host else host
  return registry, f"http://{shown}:{server.server_port}/metrics"
