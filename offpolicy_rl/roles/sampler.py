"""A sampler: serves one learner; its configuration, tickets and weights all come from there."""

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable

import grpc
import jax

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.model import lora
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.replay import schedule
from offpolicy_rl.roles import parts
from offpolicy_rl.sampler import worker
from offpolicy_rl.tasks import scoring, shaping
from offpolicy_rl.transport import client, codec, receiver, security

_LOG = logging.getLogger(__name__)
_RATE_SECONDS = 60.0  # tokens come in bursts, a group's all at once


class RunMismatch(RuntimeError):
  """The learner at this address is not one that this sampler can serve."""


def run_sampler(
  address: str, *, sampler_id: str, stop: threading.Event, patience: float = 60.0,
  abandon: Callable[[], None] = lambda: None, weights_dir: str | None = None,
  credentials: security.Credentials = security.NONE,
) -> None:  # fmt: skip
  """Serves the learner at `address` until its run is over or `stop`.

  Everything else comes from the learner's configuration. `weights_dir` is the learner's, as this
  machine sees it; None when the learner streams its weights. `credentials` were checked already
  (`security.check_sampler`). After `stop`, the groups begun are finished and pushed; those that
  would take longer than sampler.grace_seconds are returned, and `abandon` is called (a process
  ends itself there: a running computation can't be interrupted).

  Raises:
    client.LearnerGone: nobody answered for `patience` seconds.
    client.Refused, RunMismatch: wrong protocol, run, vocabulary or --weights_dir.
  """
  wire = client.LearnerClient(
    address, sampler_id, reconnect_seconds=patience, credentials=credentials
  )
  done = threading.Event()
  _in_background(lambda: (stop.wait(), wire.stop()))
  identity = wire.hello()
  config = config_lib.from_json(identity.config_json)
  config_lib.validate(config)
  policy = parts.policy_of(config, identity.model_files)
  if policy.words.fingerprint != identity.vocabulary_fingerprint:
    raise RunMismatch(
      f"vocabulary_fingerprint: the learner's is {identity.vocabulary_fingerprint}, this sampler's "
      f"{policy.words.fingerprint}; install the same release of offpolicy-rl on both"
    )
  _check_weights_dir(weights_dir, identity.weights_in_directory)
  wire.set_patience(config.transport.reconnect_seconds)
  scorer = _scorer(config.task)
  stats = worker.Stats()
  _in_background(lambda: _beat(wire, stats, config.transport.heartbeat_seconds, done))
  _in_background(lambda: _leave_in_time(wire, stop, done, config.sampler.grace_seconds, abandon))
  try:
    with scorer:
      _serve(wire, config, policy, scorer, stats, stop, identity, weights_dir)
  finally:
    done.set()
  _leave(wire)
  wire.close()


def _scorer(task) -> scoring.Scorer:
  """The verifier processes; RunMismatch when this machine lacks a verifier."""
  try:
    return parts.scorer(task)
  except ValueError as error:
    raise RunMismatch(f"the learner's task can't be judged here: {error}") from None


def _in_background(function: Callable) -> None:
  threading.Thread(target=function, daemon=True).start()


def _serve(
  wire: client.LearnerClient, config, policy: parts.Policy, scorer, stats, stop, identity,
  weights_dir: str | None,
) -> None:  # fmt: skip
  """Runs the worker; starts over when the learner was restarted."""
  generator = parts.make_engine(
    config, policy, group_size=config.learner.group_size,
    max_prompt_tokens=config.task.max_prompt_tokens,
  )  # fmt: skip
  task = config.task
  shape = shaping.Shaping(task.format_reward, task.length_weight, task.failed_reward)
  while not stop.is_set():
    functions = worker.Parts(
      lease=functools.partial(_lease, wire, config, policy.model.vocab_size),
      pull_weights=_weights(wire, config, policy.model, weights_dir).pull,
      generate=generator.generate,
      score=functools.partial(worker.score_groups, scorer, policy.words.decode, shape=shape),
      push=functools.partial(_push, wire, identity),
    )
    try:
      return worker.run(functions, stats, stop.is_set)
    except client.VersionGone as error:
      _LOG.warning("%s; leaving the tickets to others", error)
      stop.wait(1.0)
    except client.SessionLost:
      _rejoin(wire, identity)


def _push(wire: client.LearnerClient, identity, groups: list[types.Group]) -> None:
  """Until every group is acknowledged, also by a learner that was restarted meanwhile."""
  while True:
    try:
      acks = wire.push(groups)
    except client.SessionLost:
      _rejoin(wire, identity)
      continue
    for ack, group in zip(acks, groups, strict=True):
      _LOG.info("%s %s: %s", ack.ticket_id, schedule.digest(group), client.verdict(ack))
    return


def _rejoin(wire: client.LearnerClient, identity) -> None:
  """Joins the session of a restarted learner; RunMismatch when it runs something else now."""
  new = wire.hello()
  if (new.run_id, new.config_json) != (identity.run_id, identity.config_json):
    raise RunMismatch(
      f"run_id: the learner now runs {new.run_id} with another configuration, this sampler served "
      f"{identity.run_id}; start the sampler anew"
    )
  _LOG.warning("the learner was restarted; joined its new session")


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


def _lease(wire: client.LearnerClient, config, vocab_size: int) -> list[types.Ticket] | None:
  """Tickets that fit this sampler; WireError when the learner sends others."""
  limit = max(1, config.sampler.slots // config.learner.group_size)
  tickets = wire.lease(limit)
  if tickets is not None and len(tickets) > limit:
    raise codec.WireError(f"tickets: got {len(tickets)}, expected at most the {limit} asked for")
  for ticket in tickets or ():
    codec.check_ticket(
      ticket, vocab_size=vocab_size, max_prompt_tokens=config.task.max_prompt_tokens,
      max_completions=config.sampler.slots,
    )  # fmt: skip
  return tickets


class _Weights:
  """The parameters on this sampler's devices, replaced when a ticket asks for another version."""

  def __init__(self, fetch, shapes, forget: Callable[[], None] = lambda: None):
    self._fetch = fetch  # (min version, max version, held) -> (version, {path: array} or None)
    self._shapes, self._forget = shapes, forget
    self._version, self._params = types.NO_VERSION, None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters): the newest there is within the bounds."""
    version, tensors = self._fetch(min_version, max_version, self._version)
    if tensors is not None:
      # A real copy, also on CPU: the receiver will use its memory again.
      sent = policy_lib.unflatten(jax.device_put(tensors, may_alias=False))
      self._params = jax.tree.map(lambda x, own: x.astype(own.dtype), sent, self._shapes)
      self._version = version
    return version, self._params

  def forget(self) -> None:
    """Frees the host's memory; the next pull begins with nothing."""
    self._version, self._params = types.NO_VERSION, None
    self._forget()


class _Adapted:
  """As `_Weights` where adapters are sent: joins them, once per version, with their base.

  The base comes once. What has a negative version is a whole model (`types.RAW_VERSION`).
  """

  def __init__(self, model, whole: _Weights, adapters: _Weights):
    self._model, self._whole, self._adapters = model, whole, adapters
    self._base = self._added = self._merged = None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters of the plain model)."""
    if max_version < 0:
      return self._whole.pull(min_version, max_version)
    if self._base is None:
      _, self._base = self._whole.pull(types.BASE_VERSION, types.BASE_VERSION)
      self._whole.forget()
    version, adapters = self._adapters.pull(min_version, max_version)
    # Not by version: another session of the learner may have another one of that number.
    if adapters is not self._added:
      self._added = self._merged = None  # frees its memory before more is taken
      self._added, self._merged = adapters, lora.merge(self._model, self._base, adapters)
    return version, self._merged


def _weights(wire: client.LearnerClient, config, model, weights_dir: str | None):
  """Whole models, or adapters and the base that they belong to."""
  make = _from_stream if weights_dir is None else functools.partial(_from_directory, weights_dir)
  whole = make(wire, config, policy_lib.cast(model, policy_lib.shapes(lora.plain(model))))
  if not model.lora_rank:
    return whole
  return _Adapted(model, whole, make(wire, config, lora.split(policy_lib.shapes(model))[1]))


def _layout(config, shapes) -> receiver.Layout:
  dtype = config.transport.weights_dtype
  return {name: (x.shape, dtype) for name, x in policy_lib.flatten(shapes).items()}


def _from_stream(wire: client.LearnerClient, config, shapes) -> _Weights:
  held = receiver.Receiver(_layout(config, shapes))
  return _Weights(lambda low, high, _: wire.pull_weights(low, high, held), shapes, held.forget)


def _from_directory(weights_dir: str, wire: client.LearnerClient, config, shapes) -> _Weights:
  from offpolicy_rl.transport import weights_dir as weights_dir_lib  # orbax: only when it is used

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  layout = _layout(config, shapes)
  like = {k: jax.ShapeDtypeStruct(s, d, sharding=here) for k, (s, d) in layout.items()}

  held_of = None  # a version of another session may have other bits

  def fetch(low, high, held_version):
    nonlocal held_of
    session = wire.session
    found = weights_dir_lib.pull(
      weights_dir, low, high, session=session, like=like,
      held_version=held_version if held_of == session else types.NO_VERSION,
      seconds=config.transport.reconnect_seconds, check=wire.check_session,
    )  # fmt: skip
    held_of = session
    return found

  return _Weights(fetch, shapes)


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


def _beat(wire, stats: worker.Stats, seconds: float, done: threading.Event) -> None:
  """Heartbeats until the work is done; a failed one is left to the next."""
  seen = collections.deque([(time.monotonic(), 0)])  # (when, tokens) of the last minute
  while not done.wait(seconds):
    seen.append((time.monotonic(), stats.tokens))
    while len(seen) > 2 and seen[1][0] < seen[-1][0] - _RATE_SECONDS:
      seen.popleft()
    (start, before), (end, tokens) = seen[0], seen[-1]
    rate = (tokens - before) / (end - start)
    try:
      wire.heartbeat({"tokens_per_second": rate})
    except Exception as error:  # the main thread's calls report a lasting problem
      _LOG.debug("heartbeat: %s", error)
