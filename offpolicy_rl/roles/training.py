"""How a run begins: its prompts, and the policy of version 0 or of the last checkpoint.

`initial_state` runs in every process of a learner, in step; what only the first one does is behind
the methods of `Process`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from offpolicy_rl import types
from offpolicy_rl.learner import checkpoint, step, warm_start
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import lora, policy, pretrained
from offpolicy_rl.replay import batching
from offpolicy_rl.roles import build, data
from offpolicy_rl.roles.assembly import Learner
from offpolicy_rl.roles.publishing import Publishing
from offpolicy_rl.tasks import stream


class Process(Protocol):
  """What the beginning needs of a process: the learner's first one, or one that follows it."""

  config: object
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  checkpoints: checkpoint.Checkpoints
  restored: checkpoint.Restored | None
  publishing: Publishing

  def say(self, text: str) -> None:
    """Tells people, once for all processes."""

  def ask(self, phase: str, *, version: int, step: int) -> None:
    """Asks the samplers for an evaluation."""

  def demonstrations(self, at_step: int) -> types.Batch:
    """Of a step of the warm start, on the devices; raises loop.Stopped."""

  def warmed(self, at_step: int, loss: float) -> None:
    """Books a step of the warm start."""


def prompts(me: Learner) -> tuple[list[tuple[float, list]], list]:
  """([(rate, training prompts) of each task], held-out prompts in the order of their use)."""
  train, held = (data.examples(me.config, split, me.policy) for split in data.SPLITS)
  for split, members in zip(data.SPLITS, (train, held), strict=True):
    data.require_some(me.config, split, [made for _, made in members])
  heldout = stream.in_turn([(rate, made.examples) for rate, made in held])
  counts = {
    "prompts": sum(len(made.examples) for _, made in train),
    "heldout_prompts": len(heldout),
    "prompts_too_long": sum(len(made.too_long) for _, made in train),
    "heldout_prompts_too_long": sum(len(made.too_long) for _, made in held),
    "prompts_left_out": sum(len(made.left_out) for _, made in train),
    "heldout_prompts_left_out": sum(len(made.left_out) for _, made in held),
  }
  examples = [(rate, made.examples) for rate, made in train]
  if me.restored is None:
    me.records.task(counts)
    if me.config.warm_start.steps:
      _check_demonstrations(me, examples)
  me.screen.say(data.summary(me.config.task.name, train, held))
  return examples, heldout


def initial_state(me: Process):
  """(state, frozen initial policy or None): restored, or made and warm-started.

  The frozen policy is there when the objective looks at a reference or adapters are trained on it.
  """
  choices = me.choices
  adapters = bool(choices.model.lora_rank)
  wants_frozen = adapters or choices.objective.choices.needs_reference
  if me.restored is not None:
    frozen = _restored_frozen(me) if wants_frozen else None  # published before a ticket asks for it
    return _restored_state(me), frozen
  params = _initial_params(me)
  if me.config.warm_start.steps:
    me.publishing.now(types.RAW_VERSION, params)
    me.ask("before warm start", version=types.RAW_VERSION, step=0)
    params = _warm_start(me, params)
  if wants_frozen:
    me.checkpoints.save_initial(params)
  if adapters:
    me.publishing.base(params)
    return state_lib.create(choices.model, me.mesh, choices.optimizer, me.config.seed), params
  frozen = jax.tree.map(jnp.copy, params) if wants_frozen else None
  return state_lib.from_params(params, choices.optimizer, me.mesh), frozen


def _restored_state(me: Process) -> state_lib.TrainState:
  """Of the last checkpoint; what was open then is asked for again."""
  me.say(f"resuming from the checkpoint of step {me.restored.step}")
  for version, tensors in me.restored.versions.items():
    me.publishing.store.put(version, tensors)
  for row in me.restored.position["evaluations"]:
    me.ask(row["phase"], version=row["version"], step=row["step"])
  return me.restored.state


def _restored_frozen(me: Process):
  shapes = policy.shapes(lora.plain(me.choices.model))
  params = me.checkpoints.restore_initial(shapes, policy.param_shardings(me.mesh, shapes))
  if me.choices.model.lora_rank:
    me.publishing.base(params)
  return params


def _initial_params(me: Process):
  """Fresh, or the weights of a published checkpoint, each device reading its own part."""
  model = lora.plain(me.choices.model)
  if not me.config.model.checkpoint:
    return state_lib.create_params(model, me.mesh, me.config.seed)
  found = pretrained.Checkpoint(pathlib.Path(me.config.model.checkpoint))
  me.say(f"weights of {found.directory}")
  return found.load(policy.param_shardings(me.mesh, policy.shapes(model)))


def _that_fit(me: Learner, train):
  """The training prompts whose demonstration is no longer than a completion may be."""
  most = me.config.task.max_completion_tokens
  return [(rate, [e for e in es if e.demonstration_tokens.size <= most]) for rate, es in train]


def _check_demonstrations(me: Learner, train) -> None:
  """Tells how many the warm start will leave out; ValueError when a task keeps none."""
  most, left_out = me.config.task.max_completion_tokens, 0
  for (rate, examples), (_, kept) in zip(train, _that_fit(me, train), strict=True):
    left_out += len(examples) - len(kept)
    if not kept:
      raise ValueError(
        f"task.max_completion_tokens: got {most}, which none of the {len(examples)} demonstrations "
        f"(at rate {rate:g}) fits in; raise it, or set warm_start.steps=0"
      )
  if left_out:
    me.screen.say(f"warm start: {left_out} demonstrations of more than {most} tokens are left out")


def demonstrations(me: Learner, train) -> Callable[[int], types.Batch]:
  """Step of the warm start -> its batch, on the host."""
  rows = me.config.warm_start.rows
  limits = build.limits(me.config, group_size=1)
  shown = stream.of(_that_fit(me, train), me.config.seed + 1)

  def batch(at_step: int) -> types.Batch:
    """The next `rows` demonstrations of the stream."""
    chosen = [shown[at_step * rows + i] for i in range(rows)]
    pairs = [(e.prompt_tokens, e.demonstration_tokens) for e in chosen]
    return batching.demonstration_batch(pairs, limits)

  return batch


def _warm_start(me: Process, params):
  """These parameters, whose memory is reused, after the supervised phase."""
  settings = me.config.warm_start
  optimizer = state_lib.make_optimizer(
    learning_rate=settings.learning_rate,
    num_steps=settings.steps,
    warmup_steps=settings.steps // 20,
    # Constant to the end: after a decay to zero, RL's first updates would undo the fine tuning.
    schedule="constant",
    in_host_memory=me.config.learner.offload_optimizer,
  )
  losses = []

  def write(at_step: int, loss: float) -> None:
    """Remembers the loss for the end, and books it."""
    losses.append(loss)
    me.warmed(at_step, loss)

  state = warm_start.run(
    dataclasses.replace(me.choices.reference(), optimizer=optimizer),
    state_lib.from_params(params, optimizer, me.mesh),
    num_steps=settings.steps,
    next_batch=me.demonstrations,
    write=write,
    stop_loss=settings.stop_loss,
  )
  me.say(f"warm start ended after {len(losses)} steps, loss {losses[-1]:.3f}")
  return state.params
