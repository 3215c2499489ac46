"""The supervised phase before reinforcement learning, on the task's own demonstrations."""

import functools
from collections.abc import Callable

import jax

from offpolicy_rl import types
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.learner.step import StepChoices, supervised_step

_SMOOTHING = 0.9  # of the loss, before it is compared with stop_loss


def run(
  choices: StepChoices,
  state: TrainState,
  *,
  num_steps: int,
  next_batch: Callable[[int], types.Batch],
  write: Callable[[int, float], None],
  stop_loss: float = 0.0,
) -> tuple[TrainState, list[float]]:
  """Imitates demonstrations; returns the last state and the losses, nats per demonstration token.

  `write(step, loss)` is called in each of at most `num_steps` steps. Ends when the smoothed loss is
  below `stop_loss`: as seeds differ in the steps they need, runs then start from equally good
  policies.
  """
  step_fn = jax.jit(
    functools.partial(supervised_step, choices),
    donate_argnums=0,
    out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
  )
  losses, smoothed = [], None
  for step in range(num_steps):
    state, metrics = step_fn(state, next_batch(step))
    loss = metrics["loss"].item()
    losses.append(loss)
    write(step, loss)
    smoothed = loss if smoothed is None else _SMOOTHING * smoothed + (1 - _SMOOTHING) * loss
    if smoothed < stop_loss:
      break
  return state, losses
