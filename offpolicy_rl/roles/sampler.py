"""A sampler: serves one learner; its configuration, tickets and weights all come from there."""

import collections
import functools
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.model import lora, sharding
from offpolicy_rl.replay import schedule
from offpolicy_rl.roles import build, pulling
from offpolicy_rl.sampler import engines, worker
from offpolicy_rl.sampler import served as served_lib
from offpolicy_rl.tasks import scoring, shaping
from offpolicy_rl.transport import client, codec, names, security

_LOG = logging.getLogger(__name__)
_MOST_REFUSED = 8  # groups, one after the other: then it's not the groups
_RATE_SECONDS = 60.0  # tokens come in bursts, a group's all at once


class RunMismatch(RuntimeError):
  """The learner at this address is not one that this sampler can serve."""


class Served(NamedTuple):
  """A vLLM server that generates in place of our own engine (sampler/served.py)."""

  url: str
  directory: pathlib.Path  # that it reads its weights from, as this machine sees it
  tolerance: float  # of log-probabilities, in nats


class Joining(NamedTuple):
  """Where the learner is and how to get in."""

  address: str
  credentials: security.Credentials = security.NONE  # checked (`security.check_sampler`)
  patience: float = 60.0  # seconds to look for it
  proxy: str | None = None  # http://HOST:PORT


def run_sampler(
  joining: Joining,
  *,
  name: str,
  stop: threading.Event,
  abandon: Callable[[], None] = lambda: None,
  weights_dir: str | None = None,
  served: Served | None = None,
  registry: object | None = None,
) -> None:
  """Serves a learner until its run is over or `stop`.

  `name`: for people; a process is known by `names.unique(name)`. Everything else comes from the
  learner's configuration. `weights_dir` is the learner's, as this
  machine sees it; None when the learner streams its weights. After `stop`, the groups begun are
  finished and pushed; those that would take longer than sampler.grace_seconds are returned, and
  `abandon` is called (a process ends itself there: a running computation can't be interrupted).
  `served`: generates instead of us. `registry`: of prometheus.serve.

  Raises:
    client.LearnerGone: nobody answered for `joining.patience` seconds.
    client.Refused, RunMismatch: wrong protocol, run, vocabulary or --weights_dir.
  """
  sampler_id = names.unique(name)
  wire = client.LearnerClient(
    joining.address,
    sampler_id,
    reconnect_seconds=joining.patience,
    credentials=joining.credentials,
    proxy=joining.proxy,
  )
  done = threading.Event()
  _in_background(lambda: (stop.wait(), wire.stop()))
  identity = wire.hello()
  _LOG.info("joined %s as %s", joining.address, sampler_id)
  config = config_lib.from_json(identity.config_json)
  config_lib.validate(config)
  policy = build.policy_of(config, identity.model_files)
  if policy.words.fingerprint != identity.vocabulary_fingerprint:
    raise RunMismatch(
      f"vocabulary_fingerprint: the learner's is {identity.vocabulary_fingerprint}, this sampler's "
      f"{policy.words.fingerprint}; install the same release of offpolicy-rl on both"
    )
  _check_weights_dir(weights_dir, identity.weights_in_directory)
  wire.configure(config.transport.reconnect_seconds, config.transport.max_message_mb)
  scorer = _scorer(config.task)
  slots = config.sampler.slots * (config.sampler.data if served is None else 1)
  stats = worker.Stats(room=slots)
  if registry is not None:
    from offpolicy_rl.observe import prometheus  # who is not asked for figures does without

    collector = prometheus.SamplerCollector(stats, lambda: standing(stats, slots))
    registry.register(collector)
  _in_background(lambda: _beat(wire, stats, slots, config.transport.heartbeat_seconds, done))
  _in_background(lambda: _leave_in_time(wire, stop, done, config.sampler.grace_seconds, abandon))
  try:
    with scorer:
      link = _Link(wire, identity, stop)
      worker.run(_parts(link, config, policy, scorer, weights_dir, served), stats, stop.is_set)
  finally:
    done.set()
  _leave(wire)
  wire.close()


def _scorer(task) -> scoring.Scorer:
  """The verifier processes; RunMismatch when this machine lacks a verifier."""
  try:
    return build.scorer(task)
  except ValueError as error:
    raise RunMismatch(f"the learner's task can't be judged here: {error}") from None


def _in_background(function: Callable) -> None:
  threading.Thread(target=function, daemon=True).start()


class _Link:
  """The wire, joined again whenever the learner was restarted; used by several threads."""

  def __init__(self, wire: client.LearnerClient, identity, stop: threading.Event):
    self.wire, self._identity, self._stop = wire, identity, stop
    self._joining = threading.Lock()
    self._refused = 0  # groups, one after the other

  def keep_trying(self, call: Callable, *arguments):
    """What `call` returns, in whatever session."""
    while True:
      session = self.wire.session
      try:
        return call(*arguments)
      except client.SessionLost:
        self._rejoin(session)

  def _rejoin(self, lost: str) -> None:
    """Once per lost session; RunMismatch when the learner runs something else now."""
    with self._joining:
      if self.wire.session != lost:
        return
      new, old = self.wire.hello(), self._identity
      if (new.run_id, new.config_json) != (old.run_id, old.config_json):
        raise RunMismatch(
          f"run_id: the learner now runs {new.run_id} with another configuration, this sampler "
          f"served {old.run_id}; start the sampler anew"
        )
      _LOG.warning("the learner was restarted; joined its new session")

  def lease(self, config, vocab_size: int, room: int, have: list[str]):
    """Tickets that fit this sampler, None when the run is over; the others are declined."""
    limit = math.ceil(room / config.learner.group_size)
    check = functools.partial(
      codec.check_ticket,
      vocab_size=vocab_size,
      max_completions=config.sampler.slots,
      max_prompt_tokens=config.task.max_prompt_tokens,
    )
    return self.keep_trying(lambda: self.wire.lease(limit, holding=have, check=check))

  def pull(self, held: pulling.PerSession, low: int, high: int):
    """(version, parameters), or None where the learner has none of these any more."""
    try:
      return self.keep_trying(lambda: held.pull(self.wire.session, low, high))
    except client.VersionGone as error:
      _LOG.warning("%s; leaving the tickets to others", error)
      self._stop.wait(1.0)
      return None

  def push(self, groups: list[types.Group]) -> None:
    """Until every group is acknowledged, also by a learner that was restarted meanwhile.

    A refused one is left to the learner, which gives its ticket to others; Refused after many.
    """
    acks = self.keep_trying(self.wire.push, groups)
    for ack, group in zip(acks, groups, strict=True):
      what = client.verdict(ack)
      _LOG.info("%s %s: %s", ack.ticket_id, schedule.digest(group), what)
      self._refused = self._refused + 1 if what == "refused" else 0
      if what == "refused":
        _LOG.error("the learner refused the group of ticket %s: %s", ack.ticket_id, ack.reason)
      if self._refused == _MOST_REFUSED:
        raise client.Refused(
          f"the learner refused {_MOST_REFUSED} groups one after the other, the last one because "
          f"{ack.reason}"
        )


def _parts(link: _Link, config, policy: build.Policy, scorer, weights_dir, served) -> worker.Parts:
  shape = shaping.Shaping(
    config.task.format_reward, config.task.length_weight, config.task.failed_reward
  )
  meshes = build.sampler_meshes(config) if served is None else [sharding.make_mesh()]
  held = pulling.PerSession(
    lambda: pulling.weights(link.wire, config, policy.model, weights_dir, meshes)
  )
  return worker.Parts(
    engine=engines.Engines(_engines(config, policy, meshes, served)),
    session=lambda: link.wire.session,
    newest_version=lambda: link.wire.newest_version,
    lease=functools.partial(link.lease, config, policy.model.vocab_size),
    pull_weights=functools.partial(link.pull, held),
    score=functools.partial(
      worker.score_groups,
      scorer,
      policy.words,
      shape=shape,
      judge_unfinished=config.task.judge_unfinished,
    ),
    push=link.push,
    weight_update=config.sampler.weight_update,
    refresh_cache=config.sampler.cache_after_update == "recompute",
  )


def _engines(config, policy: build.Policy, meshes, served: Served | None) -> list:
  """Our own, one per mesh, or the server's."""
  if served is not None:
    return [_served_engine(config, policy, served)]
  return [
    build.make_engine(
      config,
      policy,
      group_size=config.learner.group_size,
      mesh=mesh,
      max_prompt_tokens=config.task.max_prompt_tokens,
      int8_weights=config.sampler.int8_weights,
    )
    for mesh in meshes
  ]


def _served_engine(config, policy: build.Policy, served: Served) -> served_lib.ServedEngine:
  if policy.files is None:
    raise RunMismatch(
      "--vllm: the learner's policy is no published model, which a server could run"
    )
  if config.sampler.int8_weights or config.sampler.weight_update != worker.BETWEEN_GROUPS:
    raise RunMismatch(
      "--vllm: a server takes weights between groups, in their own dtype; set "
      "sampler.weight_update=between_groups and sampler.int8_weights=False"
    )
  wanted = served_lib.Wanted(
    config.task.max_completion_tokens,
    build.stops(config, policy),
    build.truncation(config),
    config.seed,
  )
  return served_lib.ServedEngine(
    served_lib.Server(served.url, wanted),
    lora.plain(policy.model),
    directory=served.directory,
    slots=config.sampler.slots,
    most=served.tolerance,
  )


def _leave_in_time(wire, stop, done, grace_seconds: float, abandon: Callable[[], None]) -> None:
  stop.wait()
  if not done.wait(grace_seconds):
    _LOG.warning("not done %.0f s after the request to stop; returning the tickets", grace_seconds)
    _leave(wire)
    abandon()


def _leave(wire: client.LearnerClient) -> None:
  try:
    wire.leave()
  except grpc.RpcError as error:  # the learner is away; our leases expire there
    _LOG.debug("leave: %s", error)


def _check_weights_dir(weights_dir: str | None, in_directory: bool) -> None:
  if in_directory and weights_dir is None:
    raise RunMismatch(
      "--weights_dir: missing; the learner writes its weights to a directory, give the sampler "
      "the path under which it finds the same one"
    )
  if weights_dir is not None and not in_directory:
    raise RunMismatch(
      f"--weights_dir: got {weights_dir}, but the learner streams its weights; leave it out, or "
      "start the learner with --weights_dir, too"
    )


def standing(stats: worker.Stats, slots: int) -> dict[str, float]:
  """How a sampler with so many slots stands."""
  version = {} if stats.version == types.NO_VERSION else {"version": stats.version}
  return version | {
    "slots": slots,
    "slots_busy": min(slots, slots - stats.room),
    "groups": stats.groups,
    "tokens": stats.tokens,
  }


def _beat(wire, stats: worker.Stats, slots: int, seconds: float, done: threading.Event) -> None:
  """Heartbeats until the work is done; a failed one is left to the next."""
  # (when, tokens, seconds of waiting) of the last minute
  seen = collections.deque([(time.monotonic(), 0, 0.0)])
  while not done.wait(seconds):
    seen.append((time.monotonic(), stats.tokens, stats.seconds_waiting))
    while len(seen) > 2 and seen[1][0] < seen[-1][0] - _RATE_SECONDS:
      seen.popleft()
    elapsed, tokens, waited = (new - old for old, new in zip(seen[0], seen[-1], strict=True))
    told = {"tokens_per_second": tokens / elapsed, "waiting": waited / elapsed}
    try:
      wire.heartbeat(told | standing(stats, slots), stats.progress)
    except Exception as error:  # the main thread's calls report a lasting problem
      _LOG.debug("heartbeat: %s", error)
