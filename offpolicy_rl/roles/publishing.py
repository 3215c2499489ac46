"""Weights on their way to the samplers: every process of a learner does its part."""

import concurrent.futures
import dataclasses
from collections.abc import Callable

from offpolicy_rl import types
from offpolicy_rl.model import policy
from offpolicy_rl.transport import weights


@dataclasses.dataclass
class Publishing:
  """Copies parameters and hands them to a store, if asked to in the background."""

  store: weights.WeightStore  # or weights_dir.Publisher
  dtype: str  # what samplers get
  available: Callable[[int, int], None] = lambda version, size: None  # called with (version, bytes)
  worker: concurrent.futures.Executor = dataclasses.field(
    default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1)
  )
  going_on: concurrent.futures.Future | None = None

  def now(self, version: int, params) -> None:
    """Makes a version available."""
    self.soon(version, params)
    self.settle()

  def soon(self, version: int, params) -> None:
    """The same in the background, but for the version before it, which is waited for."""
    # A real copy: the next step will reuse the memory of these.
    tensors = policy.flatten(policy.copy(params, self.dtype))
    self.settle()
    self.going_on = self.worker.submit(self._put, version, tensors)

  def settle(self) -> None:
    """Waits until what was published last is available; raises what went wrong."""
    if self.going_on is not None:
      going_on, self.going_on = self.going_on, None
      going_on.result()

  def _put(self, version: int, tensors) -> None:
    self.store.put(version, tensors)
    self.available(version, sum(x.nbytes for x in tensors.values()))

  def base(self, params) -> None:
    """Makes the frozen model available, whose adapters are published from now on.

    Without a copy where the dtype allows: nothing will write over it.
    """
    tensors = {k: x.astype(self.dtype) for k, x in policy.flatten(params).items()}
    self.store.put(types.BASE_VERSION, tensors)
