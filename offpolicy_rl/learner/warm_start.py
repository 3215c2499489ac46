"""The supervised phase before reinforcement learning, on the task's own demonstrations."""

import functools
from collections.abc import Callable

import jax

from offpolicy_rl import types
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.learner.step import StepChoices, supervised_step


def run(
  choices: StepChoices, state: TrainState, *, num_steps: int,
  next_batch: Callable[[int], types.Batch], write: Callable[[int, dict], None],
  should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:  # fmt: skip
  """Imitates demonstrations for `num_steps`; `write` gets the loss of each step."""
  step_fn = jax.jit(functools.partial(supervised_step, choices), donate_argnums=0)
  for step in range(num_steps):
    if should_stop():
      break
    state, metrics = step_fn(state, next_batch(step))
    write(step, {"loss": metrics["loss"].item()})
  return state
