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
from offpolicy_rl.transport import client, receiver

_LOG = logging.getLogger(__name__)


class RunMismatch(RuntimeError):
  """The learner at this address is not one that this sampler can serve."""


def run_sampler(
  address: str, *, sampler_id: str, stop: threading.Event, patience: float = 60.0,
  weights_dir: str | None = None,
) -> None:  # fmt: skip
  """Serves the learner at `address` until its run is over or `stop`.

  Everything else comes from the learner's configuration. `weights_dir` is the learner's, as this
  machine sees it; None when the learner streams its weights.

  Raises:
    client.LearnerGone: nobody answered for `patience` seconds.
    client.Refused, RunMismatch: wrong protocol, run, vocabulary or --weights_dir.
  """
  wire = client.LearnerClient(address, sampler_id, reconnect_seconds=patience)
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
  _check_weights_dir(weights_dir, identity.weights_in_directory)
  wire.set_patience(config.transport.reconnect_seconds)
  scorer = scoring.Scorer(
    task.verifier, workers=config.task.verifier_processes, time_limit=config.task.verifier_seconds
  )
  stats = worker.Stats()
  beat = threading.Thread(target=_beat, args=(wire, stats, config, stop), daemon=True)
  beat.start()
  with scorer:
    _serve(wire, config, scorer, stats, stop, identity, weights_dir)
  wire.close()


def _serve(
  wire: client.LearnerClient, config, scorer, stats, stop, identity, weights_dir: str | None
) -> None:  # fmt: skip
  """Runs the worker; starts over with empty hands when the learner was restarted."""
  run_id, generator = identity.run_id, parts.make_engine(config)
  vocabulary = catalog.TASKS[config.task.name].vocabulary
  while not stop.is_set():
    functions = worker.Parts(
      lease=functools.partial(
        wire.lease, max(1, config.sampler.slots // config.learner.group_size)
      ),
      pull_weights=_weights(wire, config, weights_dir, identity.session).pull,
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
      _check_weights_dir(weights_dir, identity.weights_in_directory)
      _LOG.warning("the learner was restarted; joined its new session")


class _Weights:
  """The parameters on this sampler's devices, replaced when a ticket asks for another version."""

  def __init__(self, fetch, shapes):
    self._fetch = fetch  # (min version, max version, held) -> (version, {path: array} or None)
    self._shapes = shapes
    self._version, self._params = types.NO_VERSION, None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters): the newest there is within the bounds."""
    version, tensors = self._fetch(min_version, max_version, self._version)
    if tensors is not None:
      # A real copy, also on CPU: the receiver will use its memory again.
      sent = policy.unflatten(jax.device_put(tensors, may_alias=False))
      self._params = jax.tree.map(lambda x, own: x.astype(own.dtype), sent, self._shapes)
      self._version = version
    return version, self._params


def _weights(wire: client.LearnerClient, config, weights_dir: str | None, session: str) -> _Weights:
  """From the stream, or from a directory."""
  shapes = jax.eval_shape(lambda: policy.init(parts.model_config(config), jax.random.key(0)))
  dtype = config.transport.weights_dtype
  layout = {name: (x.shape, dtype) for name, x in policy.flatten(shapes).items()}
  if weights_dir is None:
    held = receiver.Receiver(layout)
    return _Weights(lambda low, high, _: wire.pull_weights(low, high, held), shapes)
  from offpolicy_rl.transport import weights_dir as weights_dir_lib  # orbax: only when it is used

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = {k: jax.ShapeDtypeStruct(s, d, sharding=here) for k, (s, d) in layout.items()}

  def fetch(low, high, held_version):
    return weights_dir_lib.pull(
      weights_dir, low, high, session=session, held_version=held_version, like=like,
      seconds=config.transport.reconnect_seconds, check=wire.check_session,
    )  # fmt: skip

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
