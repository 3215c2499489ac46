"""Measures during a run whether sampler and learner agree on log-probabilities.

They compute them with different programs: prefill and decode with a cache, or one pass over rows.
The comparison needs the version that sampled, which the learner has replaced by the time the tokens
arrive. So it sometimes keeps a copy of its parameters until they do.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from offpolicy_rl import types
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.learner.step import StepChoices, logprob_mismatch
from offpolicy_rl.model.policy import Params


class LogprobAudit:
  """Called before each update; compares once in a while."""

  def __init__(
    self, choices: StepChoices, *, every: int, max_lag: int, frozen: Params | None = None
  ):
    """Makes no copy yet.

    Args:
      every: steps between copies; 0 = never.
      max_lag: versions after which a copy is dropped.
      frozen: the base if the trained parameters are adapters.
    """
    self._choices, self._frozen = choices, frozen
    self._every, self._max_lag = every, max_lag
    self._version, self._params = types.NO_VERSION, None

  def __call__(
    self, step: int, state: TrainState, versions: Collection[int], placed: types.Batch
  ) -> dict[str, jax.Array | float]:
    """Returns the metrics of `logprob_mismatch`; {} in most steps.

    Args:
      state: before the update.
      versions: that sampled the tokens of the batch.
      placed: the batch on the devices.
    """
    if self._params is not None and step > self._version + self._max_lag:
      self._params = None  # no sampler used that version
    if self._every and self._params is None and step % self._every == 0:
      self._version, self._params = step, jax.tree.map(jnp.copy, state.params)
    if self._params is None or self._version not in versions:
      return {}
    row = logprob_mismatch(self._choices, self._params, placed, self._version, self._frozen)
    self._params = None
    return {key: value if value.ndim else value.item() for key, value in row.items()}
