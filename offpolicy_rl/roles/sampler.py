"""A sampler: serves one learner; its configuration, tickets and weights all come from there."""

import functools
import logging
import threading
import time

import jax

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.model import policy
from offpolicy_rl.roles import parts
from offpolicy_rl.sampler import worker
from offpolicy_rl.tasks import catalog, scoring
from offpolicy_rl.transport import client, codec, security

_LOG = logging.getLogger(__name__)


class RunMismatch(RuntimeError):
  """The learner at this address is not one that this sampler can serve."""


def run_sampler(
  address: str, *, sampler_id: str, stop: threading.Event, patience: float = 60.0,
  credentials: security.Credentials = security.NONE,
) -> None:  # fmt: skip
  """Serves the learner at `address` until its run is over or `stop`.

  Everything else comes from the learner's configuration. `credentials` were checked already
  (`security.check_sampler`).

  Raises:
    client.LearnerGone: nobody answered for `patience` seconds.
    client.Refused, RunMismatch: wrong protocol, run or vocabulary.
  """
  wire = client.LearnerClient(
    address, sampler_id, reconnect_seconds=patience, credentials=credentials
  )
  watcher = threading.Thread(target=lambda: (stop.wait(), wire.stop()), daemon=True)
  watcher.start()
  identity = wire.hello()
  config = config_lib.from_json(identity.config_json)
  config_lib.validate(config)
  task = catalog.TASKS[config.task.name]
  if task.vocabulary.fingerprint != identity.vocabulary_fingerprint:
    raise RunMismatch(
      f"vocabulary_fingerprint: the learner's is {identity.vocabulary_fingerprint}, this sampler's "
      f"{task.vocabulary.fingerprint}; install the same release of offpolicy-rl on both"
    )
  wire.set_patience(config.transport.reconnect_seconds)
  scorer = scoring.Scorer(
    task.verifier, workers=config.task.verifier_processes, time_limit=config.task.verifier_seconds
  )
  stats = worker.Stats()
  beat = threading.Thread(target=_beat, args=(wire, stats, config, stop), daemon=True)
  beat.start()
  with scorer:
    _serve(wire, config, scorer, stats, stop, identity.run_id)
  wire.close()


def _serve(wire: client.LearnerClient, config, scorer, stats, stop, run_id: str) -> None:
  """Runs the worker; starts over with empty hands when the learner was restarted."""
  generator = parts.make_engine(config)
  vocabulary = catalog.TASKS[config.task.name].vocabulary
  while not stop.is_set():
    functions = worker.Parts(
      lease=functools.partial(_lease, wire, config, vocabulary.size),
      pull_weights=_Weights(wire, config).pull,
      generate=generator.generate,
      score=functools.partial(worker.score_groups, scorer, vocabulary.decode),
      push=wire.push,
    )
    try:
      return worker.run(functions, stats, stop.is_set)
    except client.SessionLost:
      identity = wire.hello()
      if identity.run_id != run_id or identity.config_json != config_lib.to_json(config):
        raise RunMismatch(
          f"run_id: the learner now runs {identity.run_id}, this sampler served {run_id}; "
          "start the sampler anew"
        ) from None
      _LOG.warning("the learner was restarted; joined its new session")


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

  def __init__(self, wire: client.LearnerClient, config):
    self._wire = wire
    shapes = jax.eval_shape(lambda: policy.init(parts.model_config(config), jax.random.key(0)))
    self._expected = {name: (x.shape, x.dtype) for name, x in policy.flatten(shapes).items()}
    self._max_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    self._version, self._params = types.NO_VERSION, None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters): the newest there is within the bounds."""
    version, tensors = self._wire.pull_weights(
      min_version, max_version, self._version, self._max_bytes
    )
    if tensors is not None:
      found = {name: (x.shape, x.dtype) for name, x in tensors.items()}
      if found != self._expected:
        wrong = sorted(set(found.items()) ^ set(self._expected.items()))[0]
        raise codec.WireError(f"weights.tensors: {wrong} differs from this sampler's model")
      self._params = jax.device_put(policy.unflatten(tensors))
      self._version = version
    return version, self._params


def _beat(wire: client.LearnerClient, stats: worker.Stats, config, stop: threading.Event) -> None:
  """Heartbeats until the process ends; a failed one is left to the next."""
  before, at = 0, time.monotonic()
  while not stop.wait(config.transport.heartbeat_seconds):
    tokens, now = stats.tokens, time.monotonic()
    rate = (tokens - before) / (now - at)
    before, at = tokens, now
    try:
      wire.heartbeat({"tokens_per_second": rate})
    except Exception as error:  # the main thread's calls report a lasting problem
      _LOG.debug("heartbeat: %s", error)
