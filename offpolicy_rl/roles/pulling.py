"""The weights on a sampler's devices: pulled, or read from a directory, and kept while in use."""

import functools
from collections.abc import Callable

import jax
import numpy as np

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

  def __init__(self, fetch, shapes, meshes, forget=lambda: None, *, prepare=lambda params: params):
    """Nothing is held at first.

    Args:
      fetch: (min version, max version, held) -> (version, {path: array} or None).
      shapes: of the parameters, in the dtypes that they are used in.
      meshes: a copy is laid out on each.
      forget: frees what `fetch` holds.
      prepare: from the parameters that were sent to those that are used.
    """
    self._fetch, self._shapes, self._forget, self._prepare = fetch, shapes, forget, prepare
    self._places = [policy_lib.flatten(policy_lib.param_shardings(m, shapes)) for m in meshes]
    self._version, self._params = types.NO_VERSION, None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters on each mesh): the newest there is within the bounds."""
    version, tensors = self._fetch(min_version, max_version, self._version)
    if tensors is not None:
      self._params = [self._laid_out(tensors, places) for places in self._places]
      self._version = version
    return version, self._params

  def _laid_out(self, tensors, places):
    sent = policy_lib.unflatten({name: _placed(x, places[name]) for name, x in tensors.items()})
    return self._prepare(jax.tree.map(lambda x, own: x.astype(own.dtype), sent, self._shapes))

  def forget(self) -> None:
    """Frees the host's memory; the next pull begins with nothing."""
    self._version, self._params = types.NO_VERSION, None
    self._forget()


def _placed(tensor: np.ndarray | jax.Array, place: jax.sharding.Sharding) -> jax.Array:
  """A tensor on its devices, sharing no memory with a host array.

  The receiver writes the next version over its arrays while these are sampled from. The copy is
  made here: on CPU JAX keeps using a host array that is aligned to 64 bytes, may_alias=False or not
  (0.12.0.1). One tensor at a time, so that the host holds one more than the receiver does.
  """
  ours = tensor.copy() if isinstance(tensor, np.ndarray) else tensor
  return jax.block_until_ready(jax.device_put(ours, place))


class Adapted:
  """As `Weights` where adapters are sent: joins them, once per version, with their base.

  The base comes once. What has a negative version is a whole model (`types.RAW_VERSION`).
  """

  def __init__(self, model, whole: Weights, adapters: Weights, *, prepare=lambda params: params):
    self._model, self._whole, self._adapters, self._prepare = model, whole, adapters, prepare
    self._base = self._added = self._merged = None

  def pull(self, min_version: int, max_version: int):
    """(version, parameters of the plain model on each mesh)."""
    if max_version < 0:
      version, params = self._whole.pull(min_version, max_version)
      return version, [self._prepare(whole) for whole in params]
    if self._base is None:
      _, self._base = self._whole.pull(types.BASE_VERSION, types.BASE_VERSION)
      self._whole.forget()
    version, adapters = self._adapters.pull(min_version, max_version)
    # Not by version: another session of the learner may have another one of that number.
    if adapters is not self._added:
      self._added = self._merged = None  # frees its memory before more is taken
      self._merged = [
        self._prepare(lora.merge(self._model, *both))
        for both in zip(self._base, adapters, strict=True)
      ]
      self._added = adapters
    return version, self._merged


def weights(wire: client.LearnerClient, config, model, weights_dir: str | None, meshes):
  """Whole models, or adapters and the base that they belong to, on each of these meshes."""
  sent = _streamed if weights_dir is None else functools.partial(_in_directory, weights_dir)

  def make(shapes, **how) -> Weights:
    """Of one kind of version: whole models, or adapters."""
    layout = _layout(config, shapes, meshes[0])
    fetch, forget = sent(wire, config, layout)
    return Weights(fetch, shapes, meshes, forget, **how)

  prepare = int8.quantize if config.sampler.int8_weights else lambda params: params
  plain = policy_lib.cast(model, policy_lib.shapes(lora.plain(model)))
  if not model.lora_rank:
    return make(plain, prepare=prepare)
  adapters = make(lora.split(policy_lib.shapes(model))[1])
  return Adapted(model, make(plain), adapters, prepare=prepare)


def _layout(config, shapes, mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """What is sent, and where the first copy goes."""
  dtype = config.transport.weights_dtype
  places = policy_lib.param_shardings(mesh, shapes)
  like = lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place)
  return policy_lib.flatten(jax.tree.map(like, shapes, places))


def _streamed(wire: client.LearnerClient, config, layout):
  """How to get and to forget them."""
  dtype = config.transport.weights_dtype
  held = receiver.Receiver({name: (x.shape, dtype) for name, x in layout.items()})
  return lambda low, high, _: wire.pull_weights(low, high, held), held.forget


def _in_directory(weights_dir: str, wire: client.LearnerClient, config, layout):
  """The same, each device reading its own part."""
  from offpolicy_rl.transport import weights_dir as weights_dir_lib  # orbax: only when it is used

  held_of = None  # a version of another session may have other bits

  def fetch(low, high, held_version):
    """As `weights_dir.pull`; what is held of another session does not count."""
    nonlocal held_of
    session = wire.session
    found = weights_dir_lib.pull(
      weights_dir,
      low,
      high,
      session=session,
      like=layout,
      held_version=held_version if held_of == session else types.NO_VERSION,
      seconds=config.transport.reconnect_seconds,
      check=wire.check_session,
    )
    held_of = session
    return found

  return fetch, lambda: None
