"""A teacher's log-probabilities of what the policy wrote, for objectives that distil it.

The teacher is a second model of any architecture whose parameters rest on the devices, split like
the policy's, and never change. It judges a batch once, before the updates that the batch makes.
"""

import functools

import jax

from offpolicy_rl import types
from offpolicy_rl.learner.step import StepChoices
from offpolicy_rl.model import policy, sharding


class Teacher:
  """Called with a batch on the devices, returns it with `teacher_logprobs`."""

  def __init__(self, choices: StepChoices, params: policy.Params, mesh: jax.sharding.Mesh):
    """Compiles nothing yet; of `choices` counts how its model computes log-probabilities."""
    self._logprobs, self._params = compile_logprobs(choices, mesh), params

  def __call__(self, batch: types.Batch) -> types.Batch:
    return batch._replace(teacher_logprobs=self._logprobs(self._params, batch))


def compile_logprobs(choices: StepChoices, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
  """Jits `logprobs` for a mesh."""
  split = sharding.batch_sharding(mesh, 3)
  return jax.jit(functools.partial(logprobs, choices), out_shardings=split)


def logprobs(choices: StepChoices, params: policy.Params, batch: types.Batch) -> jax.Array:
  """float32 [A, N, M] in nats at the sampler's temperature, part by part; 0 outside the mask."""

  def of_part(part: types.Batch) -> jax.Array:
    part = part._replace(rows=part.rows._replace(candidates=None))
    return choices.token_stats(params, part).logprobs

  return jax.lax.map(of_part, batch)
