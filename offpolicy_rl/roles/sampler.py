"""A sampler; its learner sends it the configuration, tickets and weights."""

import collections
import contextlib
import functools
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import grpc
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import environment
from offpolicy_rl.model import lora, sharding
from offpolicy_rl.replay import lag, schedule
from offpolicy_rl.roles import build
from offpolicy_rl.roles import weights as weights_lib
from offpolicy_rl.sampler import engines, served, worker
from offpolicy_rl.tasks import judge
from offpolicy_rl.transport import client, codec

_LOG = logging.getLogger(__name__)
_MAX_REFUSALS = 8  # groups refused in a row: then something else is wrong
_RATE_SECONDS = 60.0  # window for rates, as the tokens of a group are counted all at once


class RunMismatch(RuntimeError):
  """This sampler can't serve the learner at this address."""


class Vllm(NamedTuple):
  """A vLLM server that replaces our engine (sampler/served.py)."""

  url: str
  directory: pathlib.Path  # the server's model directory, as this machine sees it
  tolerance: float  # of log-probabilities, in nats


def run_sampler(
  wire: client.LearnerClient,
  *,
  stop: threading.Event,
  abandon: Callable[[], None] = lambda: None,
  weights_dir: str | None = None,
  vllm: Vllm | None = None,
  registry: Any = None,
) -> None:
  """Serves a learner until its run is over or `stop`.

  After `stop`, running groups are finished and pushed. After sampler.grace_seconds their tickets
  are returned and `abandon` is called. It must end the process: computations can't be interrupted.

  Args:
    weights_dir: the learner's, as seen here; None = the learner streams its weights.
    registry: of prometheus.serve; None = no metrics for Prometheus.

  Raises:
    client.LearnerGone: nobody answered within the patience of `wire`.
    client.Refused, RunMismatch: wrong protocol, run, vocabulary or --weights_dir.
  """
  done = threading.Event()
  _in_background(lambda: (stop.wait(), wire.stop()))
  identity = wire.hello()
  _LOG.info("joined the learner's session %s", wire.session)
  config, policy = _accept(identity, weights_dir)
  wire.configure(config.transport.reconnect_seconds, config.transport.max_message_mb)
  slots = config.sampler.slots * (1 if vllm else config.sampler.data)
  stats = worker.Stats(room=slots)
  if registry is not None:
    _register(registry, stats, slots)
  _in_background(lambda: _beat(wire, stats, slots, config.transport.heartbeat_seconds, done))
  _in_background(lambda: _leave_in_time(wire, stop, done, config.sampler.grace_seconds, abandon))
  try:
    with _judging(config, policy) as score, contextlib.ExitStack() as stack:
      meshes = [sharding.make_mesh()] if vllm else build.sampler_meshes(config)
      weights = weights_lib.SamplerWeights(wire, config, policy.model, meshes, weights_dir)
      if vllm:
        made = _vllm_engine(config, policy, vllm, stack)
      else:
        made = _engine_per_mesh(config, policy, meshes, stack)
      worker.run(
        made,
        _LearnerConnection(wire, identity, config, policy.model.vocab_size, weights, stop),
        score,
        stats,
        should_stop=stop.is_set,
        weight_update=config.sampler.weight_update,
        refresh_cache=config.sampler.cache_after_update == "recompute",
      )
  except judge.JudgeError as error:  # another sampler would end in the same way
    raise config_lib.ConfigError(str(error)) from None
  finally:
    done.set()
  _leave(wire)
  wire.close()


def _register(registry: Any, stats: worker.Stats, slots: int) -> None:
  from offpolicy_rl.observe import prometheus  # imported only if used

  registry.register(prometheus.SamplerCollector(stats, lambda: status(stats, slots)))


def _in_background(function: Callable) -> None:
  threading.Thread(target=function, daemon=True).start()


def _accept(identity, weights_dir: str | None) -> tuple[ConfigDict, build.Policy]:
  """The learner's configuration and policy; RunMismatch if this sampler can't serve it."""
  config = config_lib.from_json(identity.config_json)
  config_lib.validate(config)
  policy = build.make_policy(config, identity.model_files)
  if policy.tokenizer.fingerprint != identity.vocabulary_fingerprint:
    raise RunMismatch(
      f"vocabulary_fingerprint: the learner's is {identity.vocabulary_fingerprint}, this sampler's "
      f"{policy.tokenizer.fingerprint}; install the same release of offpolicy-rl on both"
    )
  if identity.weights_in_directory and weights_dir is None:
    raise RunMismatch(
      "--weights_dir: missing; the learner writes its weights to a directory: give the sampler its "
      "path on this machine"
    )
  if weights_dir is not None and not identity.weights_in_directory:
    raise RunMismatch(
      f"--weights_dir: got {weights_dir}, but the learner streams its weights; omit it, or start "
      "the learner with --weights_dir, too"
    )
  return config, policy


@contextlib.contextmanager
def _judging(config: ConfigDict, policy: build.Policy) -> Generator[build.Score]:
  with contextlib.ExitStack() as stack:
    try:
      if config.lag.mode != lag.REPLAY:
        environment.require_all(config_lib.environments(config))
      score = stack.enter_context(build.scoring_of(config, policy))
    except ValueError as error:
      raise RunMismatch(f"the learner's task can't be judged here: {error}") from None
    yield score


class _LearnerConnection:
  """The worker's view of the learner: rejoins a restarted one and repeats the call."""

  def __init__(self, wire, identity, config, vocab_size: int, weights, stop: threading.Event):
    self._wire, self._identity, self._weights, self._stop = wire, identity, weights, stop
    self._group_size = config.learner.group_size
    self._check_ticket = functools.partial(
      codec.check_ticket,
      vocab_size=vocab_size,
      max_completions=config.sampler.slots,
      max_prompt_tokens=config.task.max_prompt_tokens,
      environments=config_lib.environments(config),
    )
    self._joining = threading.Lock()
    self._refusals = 0  # in a row

  @property
  def session(self) -> str:
    return self._wire.session

  @property
  def newest_version(self) -> int:
    return self._wire.newest_version

  def lease(self, room: int, ticket_ids: list[str]) -> list[types.Ticket] | None:
    """Leases tickets, and declines invalid ones; None = the run is over."""
    limit = math.ceil(room / self._group_size)
    return self._call(lambda: self._wire.lease(limit, holding=ticket_ids, check=self._check_ticket))

  def pull_weights(self, min_version: int, max_version: int) -> tuple[int, list] | None:
    """The newest version and its parameters on each mesh; None = the learner has none of these."""
    try:
      return self._call(lambda: self._weights.pull(min_version, max_version))
    except client.VersionGone as error:
      _LOG.warning("%s; leaving the tickets to others", error)
      self._stop.wait(1.0)
      return None

  def push(self, groups: list[types.Group]) -> None:
    """Returns once every group is acknowledged, possibly by a restarted learner.

    Raises:
      client.Refused: many groups in a row were refused.
    """
    outcomes = self._call(lambda: self._wire.push(groups))
    for (status, reason), group in zip(outcomes, groups, strict=True):
      _LOG.info("%s %s: %s", group.ticket_id, schedule.digest(group), status.value)
      if status is not types.PushStatus.REFUSED:
        self._refusals = 0
        continue
      self._refusals += 1
      _LOG.error("the learner refused the group of ticket %s: %s", group.ticket_id, reason)
      if self._refusals == _MAX_REFUSALS:
        raise client.Refused(
          f"the learner refused {_MAX_REFUSALS} groups in a row, the last one because {reason}"
        )

  def _call(self, function: Callable):
    while True:
      session = self._wire.session
      try:
        return function()
      except client.SessionLost:
        self._rejoin(session)

  def _rejoin(self, lost: str) -> None:
    with self._joining:
      if self._wire.session != lost:  # another thread has rejoined
        return
      new, old = self._wire.hello(), self._identity
      if (new.run_id, new.config_json) != (old.run_id, old.config_json):
        raise RunMismatch(
          f"run_id: the learner now runs {new.run_id} with another configuration, this sampler "
          f"served {old.run_id}; restart the sampler"
        )
      _LOG.warning("the learner was restarted; joined its new session")


def _engine_per_mesh(
  config, policy: build.Policy, meshes, stack: contextlib.ExitStack
) -> engines.Engines:
  make = functools.partial(
    build.engine_of,
    config,
    policy,
    group_size=config.learner.group_size,
    max_prompt_tokens=config.task.max_prompt_tokens,
    int8_weights=config.sampler.int8_weights,
  )
  return engines.Engines([stack.enter_context(make(mesh=mesh)) for mesh in meshes])


def _vllm_engine(
  config, policy: build.Policy, vllm: Vllm, stack: contextlib.ExitStack
) -> engines.Engines:
  if policy.files is None:
    raise RunMismatch(
      "--vllm: the learner's policy is no published model, so a server can't run it"
    )
  if config.sampler.int8_weights or config.sampler.weight_update != types.BETWEEN_GROUPS:
    raise RunMismatch(
      "--vllm: a server takes weights between groups, in their own dtype; set "
      "sampler.weight_update=between_groups and sampler.int8_weights=False"
    )
  params = served.SamplingParams(
    config.task.max_completion_tokens,
    build.stops(policy),
    build.truncation(config),
    config.seed,
    config.sampler.top_logprobs,
  )
  engine = served.ServedEngine(
    served.VllmServer(vllm.url, params),
    lora.base_config(policy.model),
    directory=vllm.directory,
    slots=config.sampler.slots,
    tolerance=vllm.tolerance,
    episodes=build.make_episodes(config, policy, stack),
    most=config.environment.episodes,
  )
  return engines.Engines([engine])


def _leave_in_time(wire, stop, done, grace_seconds: float, abandon: Callable[[], None]) -> None:
  stop.wait()
  if not done.wait(grace_seconds):
    _LOG.warning("not done %.0f s after the request to stop; returning the tickets", grace_seconds)
    _leave(wire)
    abandon()


def _leave(wire: client.LearnerClient) -> None:
  try:
    wire.leave()
  except grpc.RpcError as error:  # the learner is gone; our leases will expire
    _LOG.debug("leave: %s", error)


def status(stats: worker.Stats, slots: int) -> dict[str, float]:
  """The state of a sampler, as sent to the learner and to Prometheus."""
  version = {} if stats.version == types.NO_VERSION else {"version": stats.version}
  return version | {
    "slots": slots,
    "slots_busy": stats.busy,
    "groups": stats.groups,
    "tokens": stats.tokens,
  }


def _beat(wire, stats: worker.Stats, slots: int, seconds: float, done: threading.Event) -> None:
  """Sends heartbeats until the work is done; failed ones are not repeated."""
  # (time, tokens, idle seconds) of the last minute
  recent = collections.deque([(time.monotonic(), 0, 0.0)])
  while not done.wait(seconds):
    recent.append((time.monotonic(), stats.tokens, stats.seconds_waiting))
    while len(recent) > 2 and recent[1][0] < recent[-1][0] - _RATE_SECONDS:
      recent.popleft()
    elapsed, tokens, waited = (b - a for a, b in zip(recent[0], recent[-1], strict=True))
    rates = {"tokens_per_second": tokens / elapsed, "waiting": waited / elapsed}
    try:
      wire.heartbeat(rates | status(stats, slots), stats.progress)
    except Exception as error:  # the main thread's calls report a lasting problem
      _LOG.debug("heartbeat: %s", error)
