"""The training step of a learner, with its checks."""

import dataclasses
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from offpolicy_rl import types
from offpolicy_rl.learner import audit, poison, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner.loop import StepBatch
from offpolicy_rl.model.policy import Params


class Update:
  """Called with (step, state, batch), returns (new state, metrics); see `step.train_step`.

  Leaves out groups that make the update non-finite (learner/poison.py). Sometimes compares the
  learner's log-probabilities with the sampler's (learner/audit.py), and measures the load of a
  mixture's experts.
  """

  def __init__(
    self,
    choices: step.StepChoices,
    mesh: jax.sharding.Mesh,
    reference: Params | None,
    config: ConfigDict,
    say: Callable[[str], None],
    teacher: Callable[[types.Batch], types.Batch] | None = None,
  ):
    """Compiles nothing yet.

    Args:
      reference: frozen parameters, see `step.train_step`.
      say: prints a line.
      teacher: adds a teacher's log-probabilities to a batch (learner/teacher.py).
    """
    self._choices, self._reference, self._say = choices, reference, say
    self._teacher = teacher
    self._every, self._alarm = config.learner.audit_every, config.learner.mismatch_alarm
    self._groups = config.learner.prompts_per_step
    shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
    self._step = step.compile_step(choices, shardings)
    self._audit = audit.LogprobAudit(
      choices, every=self._every, max_lag=config.lag.max_lag, frozen=reference
    )
    self._poison = poison.PoisonFilter(choices, self._groups, reference)

  def __call__(
    self, at_step: int, state: state_lib.TrainState, batch: StepBatch
  ) -> tuple[state_lib.TrainState, dict]:
    """Makes one step; the old state's memory is reused."""
    checks = self._audit(at_step, state, batch.versions, batch.arrays)
    if self._choices.model.num_experts and self._every and at_step % self._every == 0:
      checks |= step.router_metrics(self._choices, state.params, batch.arrays, self._reference)
    if "mismatch/mean" in checks and self._alarm:
      checks["alarm/mismatch"] = float(checks["mismatch/mean"] > self._alarm)
    if self._teacher is not None:
      batch = dataclasses.replace(batch, arrays=self._teacher(batch.arrays))
    state, metrics = self._finite_step(at_step, state, batch)
    return state, metrics | checks

  def _finite_step(self, at_step: int, state: state_lib.TrainState, batch: StepBatch):
    state, metrics = self._step(state, batch.arrays, self._reference)
    if not int(metrics["updates_skipped"]):
      return state, metrics | {"poisoned_groups": 0}
    bad = self._poison.find(state, batch.arrays)
    if 0 < len(bad) < self._groups:
      for number in bad:
        self._say(
          f"step {at_step}: {batch.group_name(number)} makes the loss or its gradient infinite or "
          "nan, and is left out"
        )
      if not int(state.step) > at_step:
        # These include the groups that were left out.
        of_rows = ("policy_logprobs", "row_entropy", "row_log_ratio")
        rows = {name: metrics[name] for name in of_rows if name in metrics}
        rest = self._poison.without(batch.arrays, bad)
        state, metrics = self._step(state, rest, self._reference)
        metrics |= rows
    return state, metrics | {"poisoned_groups": len(bad)}
