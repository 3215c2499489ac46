"""The weights on a sampler's devices: pulled, or read from a directory, and kept while in use."""

import functools
from collections.abc import Callable

import jax

from offpolicy_rl import types
from offpolicy_rl.model import int8, lora
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.transport import client, receiver


class PerSession:
  """What is held of a learner's session is void in the next one: version 5 may have other bits."""

  def __init__(self, make: Callable):
    """`make()` gives something with a method `pull`."""
    self._make, self._session, self._held = make, None, None

  def pull(self, session: str, min_version: int, max_version: int):
    """(version, parameters)."""
    if session != self._session:
      self._held = None  # frees its memory before more is taken
      self._session, self._held = session, self._make()
    return self._held.pull(min_version, max_version)


class Weights:
  """The parameters on this sampler's devices, replaced when a ticket asks for another version."""

  def __init__(self, fetch, shapes, forget=lambda: None, *, prepare=lambda params: params):
    """`prepare`: from the parameters that were sent to those that are used."""
    self._fetch = fetch  # (min version, max version, held) -> (version, {path: array} or None)
    self._shapes, self._forget, self._prepare = shapes, forget, prepare
    self._version, self._params = types.NO_VERSION, None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters): the newest there is within the bounds."""
    version, tensors = self._fetch(min_version, max_version, self._version)
    if tensors is not None:
      # A real copy, also on CPU: the receiver will use its memory again.
      sent = policy_lib.unflatten(jax.device_put(tensors, may_alias=False))
      sent = jax.tree.map(lambda x, own: x.astype(own.dtype), sent, self._shapes)
      self._params = self._prepare(sent)
      self._version = version
    return version, self._params

  def forget(self) -> None:
    """Frees the host's memory; the next pull begins with nothing."""
    self._version, self._params = types.NO_VERSION, None
    self._forget()


class Adapted:
  """As `Weights` where adapters are sent: joins them, once per version, with their base.

  The base comes once. What has a negative version is a whole model (`types.RAW_VERSION`).
  """

  def __init__(self, model, whole: Weights, adapters: Weights, *, prepare=lambda params: params):
    self._model, self._whole, self._adapters, self._prepare = model, whole, adapters, prepare
    self._base = self._added = self._merged = None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters of the plain model)."""
    if max_version < 0:
      version, params = self._whole.pull(min_version, max_version)
      return version, self._prepare(params)
    if self._base is None:
      _, self._base = self._whole.pull(types.BASE_VERSION, types.BASE_VERSION)
      self._whole.forget()
    version, adapters = self._adapters.pull(min_version, max_version)
    # Not by version: another session of the learner may have another one of that number.
    if adapters is not self._added:
      self._added = self._merged = None  # frees its memory before more is taken
      merged = lora.merge(self._model, self._base, adapters)
      self._added, self._merged = adapters, self._prepare(merged)
    return version, self._merged


def weights(wire: client.LearnerClient, config, model, weights_dir: str | None):
  """Whole models, or adapters and the base that they belong to."""
  sent = _streamed if weights_dir is None else functools.partial(_in_directory, weights_dir)
  make = lambda shapes, **how: Weights(*sent(wire, config, shapes), **how)
  prepare = int8.quantize if config.sampler.int8_weights else lambda params: params
  plain = policy_lib.cast(model, policy_lib.shapes(lora.plain(model)))
  if not model.lora_rank:
    return make(plain, prepare=prepare)
  adapters = make(lora.split(policy_lib.shapes(model))[1])
  return Adapted(model, make(plain), adapters, prepare=prepare)


def _layout(config, shapes) -> receiver.Layout:
  dtype = config.transport.weights_dtype
  return {name: (x.shape, dtype) for name, x in policy_lib.flatten(shapes).items()}


def _streamed(wire: client.LearnerClient, config, shapes):
  """What `Weights` needs to pull them."""
  held = receiver.Receiver(_layout(config, shapes))
  return lambda low, high, _: wire.pull_weights(low, high, held), shapes, held.forget


def _in_directory(weights_dir: str, wire: client.LearnerClient, config, shapes):
  """What `Weights` needs to read them."""
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

  return fetch, shapes
