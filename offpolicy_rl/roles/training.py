"""Training, from initial parameters to the last checkpoint; every process runs it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from offpolicy_rl import types
from offpolicy_rl.learner import checkpoint, loop, step, warm_start
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner.update import Update
from offpolicy_rl.model import lora, policy, pretrained
from offpolicy_rl.roles import teacher
from offpolicy_rl.roles.weights import WeightPublisher
from offpolicy_rl.system import memory


@dataclasses.dataclass(frozen=True)
class Process:
  """One process of a learner: what it computes with, and what differs between processes.

  Methods that do nothing here are those of the first process (roles/learner.py), which has the
  samplers and the run's files.
  """

  config: ConfigDict
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  checkpoints: checkpoint.Checkpoints
  restored: checkpoint.Restored | None  # None = the run begins
  publisher: WeightPublisher
  teacher: teacher.Source | None  # None = there is no teacher

  def demonstrations(self, at_step: int) -> types.Batch:
    """Puts the batch of a step of the warm start on the devices; raises loop.Stopped."""
    raise NotImplementedError

  def next_batch(self, at_step: int) -> loop.StepBatch:
    """Waits for the batch of a step; raises loop.Stopped."""
    raise NotImplementedError

  def save(self, version: int, state: state_lib.TrainState) -> None:
    """Starts a checkpoint."""
    raise NotImplementedError

  def say(self, text: str) -> None:
    """Prints a line."""

  def request_evaluation(self, phase: str, *, version: int, step: int) -> None:
    """Requests the held-out accuracy of a published version from the samplers."""

  def start_sampling(self, version: int) -> None:
    """Starts to hand out tickets, first those that this version admits."""

  def write_warm_start(self, at_step: int, loss: float) -> None:
    """Writes the metrics of a step of the warm start."""

  def write(self, at_step: int, row: dict) -> None:
    """Writes the metrics of a step."""

  def after_step(self, version: int) -> None:
    """Requests and collects evaluations."""


def train(
  process: Process, around: Callable[[loop.Functions], Any] = contextlib.nullcontext
) -> state_lib.TrainState | None:
  """Trains all steps of the configuration or until a stop; returns the last state.

  None if it was stopped before version 0. `around(functions)` is a context manager around the loop
  that yields the functions to use instead (profiling).
  """
  config = process.config
  with jax.sharding.set_mesh(process.mesh):
    try:
      state, reference = initial_state(process)
    except loop.Stopped:
      process.say("stopped during the warm start; --resume will start over")
      return None
    first_step = int(state.step)
    process.publisher.publish_now(first_step, state.params)
    if process.restored is None:
      phase = "after warm start" if config.warm_start.steps else "before"
      process.request_evaluation(phase, version=0, step=0)
      process.save(0, state)
      process.checkpoints.wait()
    process.start_sampling(first_step)

    def after_step(version: int, state: state_lib.TrainState) -> None:
      memory.return_freed_memory()
      process.after_step(version)
      if version % config.checkpoint.every == 0:
        process.save(version, state)

    functions = loop.Functions(
      next_batch=process.next_batch,
      update=Update(
        process.choices, process.mesh, reference, config, process.say, _teacher(process)
      ),
      publish=process.publisher.publish,
      write=process.write,
      after_step=after_step,
    )
    with around(functions) as functions:
      state = loop.run(state, functions, first_step=first_step, num_steps=config.learner.steps)
  process.save(int(state.step), state)
  return state


def _teacher(process: Process) -> Callable[[types.Batch], types.Batch] | None:
  if process.teacher is None:
    return None
  process.say(f"teacher: weights of {process.teacher.directory}")
  return teacher.make(process.config, process.teacher, process.mesh)


def initial_state(process: Process) -> tuple[state_lib.TrainState, dict | None]:
  """Makes or restores (state, frozen parameters of version 0 or None).

  The frozen ones serve as reference of the objective and as base of adapters.

  Raises:
    loop.Stopped: during the warm start.
  """
  choices, config = process.choices, process.config
  adapters = choices.model.lora_rank > 0
  needs_frozen = adapters or choices.objective.choices.needs_reference
  if process.restored is not None:
    # Publishes the base before a ticket needs it.
    frozen = _restored_frozen(process) if needs_frozen else None
    return _restored_state(process, process.restored), frozen
  params = _initial_params(process)
  if config.warm_start.steps:
    process.publisher.publish_now(types.RAW_VERSION, params)
    process.request_evaluation("before warm start", version=types.RAW_VERSION, step=0)
    params = _warm_start(process, params)
  if needs_frozen:
    process.checkpoints.save_initial(params)
  if adapters:
    process.publisher.publish_base(params)
    return state_lib.create(choices.model, process.mesh, choices.optimizer, config.seed), params
  frozen = jax.tree.map(jnp.copy, params) if needs_frozen else None
  return state_lib.from_params(params, choices.optimizer, process.mesh), frozen


def _restored_state(process: Process, restored: checkpoint.Restored) -> state_lib.TrainState:
  """The state of the checkpoint; publishes its older versions, requests its open evaluations."""
  process.say(f"resuming from the checkpoint of step {restored.step}")
  for version, tensors in restored.versions.items():
    process.publisher.store.put(version, tensors)
  for row in restored.position.get("evaluations", ()):
    process.request_evaluation(row["phase"], version=row["version"], step=row["step"])
  return restored.state


def _restored_frozen(process: Process):
  shapes = policy.shapes(lora.base_config(process.choices.model))
  shardings = policy.param_shardings(process.mesh, shapes)
  params = process.checkpoints.restore_initial(shapes, shardings)
  if process.choices.model.lora_rank:
    process.publisher.publish_base(params)
  return params


def _initial_params(process: Process):
  model = lora.base_config(process.choices.model)
  if not process.config.model.checkpoint:
    return state_lib.create_params(model, process.mesh, process.config.seed)
  published = pretrained.Checkpoint(pathlib.Path(process.config.model.checkpoint))
  process.say(f"weights of {published.directory}")
  return published.load(policy.param_shardings(process.mesh, policy.shapes(model)))


def _warm_start(process: Process, params):
  """Parameters after the supervised phase; the memory of `params` is reused."""
  settings = process.config.warm_start
  optimizer = state_lib.make_optimizer(
    learning_rate=settings.learning_rate,
    num_steps=settings.steps,
    warmup_steps=settings.steps // 20,
    # Constant: after a decay to zero, RL's first updates would undo the fine tuning.
    schedule="constant",
    in_host_memory=process.config.learner.offload_optimizer,
  )
  state, losses = warm_start.run(
    dataclasses.replace(process.choices.reference(), optimizer=optimizer),
    state_lib.from_params(params, optimizer, process.mesh),
    num_steps=settings.steps,
    next_batch=process.demonstrations,
    write=process.write_warm_start,
    stop_loss=settings.stop_loss,
  )
  process.say(f"warm start ended after {len(losses)} steps, loss {losses[-1]:.3f}")
  return state.params
