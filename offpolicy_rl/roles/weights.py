"""Weights: published by every process of a learner, pulled by samplers."""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import types
from offpolicy_rl.model import decoder, int8, lora
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.transport import client, receiver
from offpolicy_rl.transport import weights as weight_store

Tensors = Mapping[str, np.ndarray | jax.Array]  # parameter path -> array
Layout = dict[str, jax.ShapeDtypeStruct]  # parameter path -> shape, dtype on the wire, sharding


# The learner's side.


class WeightPublisher:
  """Copies the learner's parameters into a store."""

  def __init__(
    self,
    store: weight_store.Store,
    dtype: str,
    published: Callable[[int, int], None] = lambda version, size: None,
  ):
    """Publishes nothing yet.

    Args:
      dtype: of the published tensors.
      published: called with (version, bytes) once a version can be pulled.
    """
    self.store, self._dtype, self._published = store, dtype, published
    self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="publish")
    self._pending: concurrent.futures.Future | None = None

  def publish_now(self, version: int, params: dict) -> None:
    """Makes a version available."""
    self.publish(version, params)
    self.wait()

  def publish(self, version: int, params: dict) -> None:
    """Makes a version available in the background, after the version before it."""
    # Copies, as the next step reuses the memory of `params`.
    tensors = policy_lib.flatten(policy_lib.copy(params, self._dtype))
    self.wait()
    self._pending = self._executor.submit(self._put, version, tensors)

  def wait(self) -> None:
    """Waits until the last version is available; raises the error if publishing failed."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()

  def _put(self, version: int, tensors) -> None:
    self.store.put(version, tensors)
    self._published(version, sum(x.nbytes for x in tensors.values()))

  def publish_base(self, params: dict) -> None:
    """Makes the frozen base of adapters available, without a copy if its dtype is right."""
    tensors = {k: x.astype(self._dtype) for k, x in policy_lib.flatten(params).items()}
    self.store.put(types.BASE_VERSION, tensors)

  def close(self) -> None:
    """Waits for the last version, and closes the store."""
    self.wait()
    self.store.close()


# The sampler's side.


class SamplerWeights:
  """The parameters on a sampler's devices.

  With LoRA the base is pulled once, and each version of the adapters is merged into it once.
  Negative versions (`types.RAW_VERSION`) are full models even then.
  """

  def __init__(
    self,
    learner: client.LearnerClient,
    config: ConfigDict,
    model: decoder.DecoderConfig,
    meshes: Sequence[jax.sharding.Mesh],
    weights_dir: str | None = None,
  ):
    """Pulls nothing yet.

    Args:
      model: with its adapters, if any.
      meshes: each gets a copy.
      weights_dir: the learner's; None = it streams its weights.
    """
    self._learner, self._config, self._model = learner, config, model
    self._meshes, self._weights_dir = meshes, weights_dir
    full = policy_lib.cast(model, policy_lib.shapes(lora.base_config(model)))
    adapters = lora.split(policy_lib.shapes(model))[1] if model.lora_rank else None
    self._shapes = {"full": full, "adapters": adapters}
    self._start(learner.session)

  def _start(self, session: str) -> None:
    """Discards everything, as versions of another session may differ."""
    self._session = session
    self._sources = {kind: self._source(shapes) for kind, shapes in self._shapes.items() if shapes}
    self._base: list = []
    self._kind, self._version = "", types.NO_VERSION
    self._params: list = []

  def _source(self, shapes) -> "_Streamed | _Stored":
    dtype = self._config.transport.weights_dtype
    shardings = policy_lib.param_shardings(self._meshes[0], shapes)
    layout = policy_lib.flatten(
      jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings)
    )
    if self._weights_dir is None:
      return _Streamed(self._learner, layout)
    seconds = self._config.transport.reconnect_seconds
    return _Stored(self._learner, layout, self._weights_dir, seconds)

  def pull(self, min_version: int, max_version: int) -> tuple[int, list]:
    """Returns the newest version within the bounds, and its parameters on each mesh.

    Raises:
      client.SessionLost: the learner was restarted.
      client.VersionGone: it no longer has any of these versions.
    """
    if self._learner.session != self._session:
      self._start(self._learner.session)
    kind = "adapters" if self._shapes["adapters"] and max_version >= 0 else "full"
    source = self._sources[kind]
    if kind == "adapters" and not self._base:
      _, tensors = self._sources["full"].fetch(types.BASE_VERSION, types.BASE_VERSION)
      assert tensors is not None, "none were held"
      self._base = self._placed(tensors, "full")
      self._sources["full"].forget()
    if kind != self._kind:
      source.forget()
      self._kind, self._version, self._params = kind, types.NO_VERSION, []
    version, tensors = source.fetch(min_version, max_version, self._version)
    if tensors is not None:
      self._params = []  # frees memory first
      self._params, self._version = self._prepared(tensors), version
    return version, self._params

  def _prepared(self, tensors: Tensors) -> list:
    params = self._placed(tensors, self._kind)
    if self._kind == "adapters":
      pairs = zip(self._base, params, strict=True)
      params = [lora.merge(self._model, base, adapters) for base, adapters in pairs]
    return [int8.quantize(p) for p in params] if self._config.sampler.int8_weights else params

  def _placed(self, tensors: Tensors, kind: str) -> list:
    return [place(tensors, self._shapes[kind], mesh) for mesh in self._meshes]


def place(tensors: Tensors, shapes: Any, mesh: jax.sharding.Mesh) -> Any:
  """Copies parameters to a mesh, in the dtypes of `shapes`, sharing no memory with host arrays.

  The receiver overwrites its arrays with the next version while these are in use. On CPU, JAX
  (0.12.0.1) keeps using a host array that is aligned to 64 bytes even with may_alias=False, hence
  the explicit copy. It is made one tensor at a time to save memory.
  """
  shardings = policy_lib.flatten(policy_lib.param_shardings(mesh, shapes))
  placed = {}
  for name, tensor in tensors.items():
    copy = tensor.copy() if isinstance(tensor, np.ndarray) else tensor
    placed[name] = jax.block_until_ready(jax.device_put(copy, shardings[name]))
  return jax.tree.map(lambda x, s: x.astype(s.dtype), policy_lib.unflatten(placed), shapes)


class _Streamed:
  """Tensors that the learner streams; each version overwrites the previous one."""

  def __init__(self, learner: client.LearnerClient, layout: Layout):
    self._learner = learner
    self._receiver = receiver.Receiver({name: (x.shape, x.dtype) for name, x in layout.items()})

  def fetch(self, low: int, high: int, _=types.NO_VERSION) -> tuple[int, Tensors | None]:
    return self._learner.pull_weights(low, high, self._receiver)

  def forget(self) -> None:
    """Frees the host's memory; the next version is sent in full."""
    self._receiver.forget()


class _Stored:
  """Tensors in the learner's weights directory; each device reads its part."""

  def __init__(self, learner: client.LearnerClient, layout: Layout, directory: str, seconds: float):
    self._learner, self._session, self._layout = learner, learner.session, layout
    self._directory, self._seconds = directory, seconds

  def fetch(self, low: int, high: int, current=types.NO_VERSION) -> tuple[int, Tensors | None]:
    """Reads the newest version within the bounds; tensors None = it is `current`."""
    from offpolicy_rl.transport import weights_dir  # Orbax is imported only if used

    try:
      return weights_dir.pull(
        self._directory,
        low,
        high,
        session=self._session,
        like=self._layout,
        held_version=current,
        seconds=self._seconds,
        check=self._check_session,
      )
    except weights_dir.Gone as error:
      raise client.VersionGone(str(error)) from None

  def _check_session(self) -> None:
    if self._learner.session != self._session:  # another thread has joined the new one
      raise client.SessionLost("the learner was restarted")
    self._learner.check_session()

  def forget(self) -> None:
    """Does nothing, as the host keeps no tensors."""
