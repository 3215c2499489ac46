"""How a run begins: its prompts, and the policy of version 0 or of the last checkpoint."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from offpolicy_rl import types
from offpolicy_rl.learner import loop, warm_start
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import pretrained
from offpolicy_rl.replay import batching
from offpolicy_rl.roles import parts
from offpolicy_rl.roles.assembly import Learner
from offpolicy_rl.tasks import catalog, stream


def prompts(me: Learner) -> tuple[list[tuple[float, list]], list]:
  """([(rate, training prompts) of each task], held-out prompts in the order of their use)."""
  from offpolicy_rl.tasks import seqio_tasks  # TensorFlow: 7 s and 0.9 GB, only here

  task, words = me.config.task, me.policy.words
  name = seqio_tasks.register(catalog.of(task), task.to_json(sort_keys=True))
  load = lambda split: seqio_tasks.load_members(name, split, words, task.max_prompt_tokens)
  train, skipped = load(catalog.TRAIN_SPLIT)
  held, held_skipped = load(catalog.HELDOUT_SPLIT)
  heldout = stream.in_turn(held)
  for rate, examples in train:
    if not examples or not heldout:
      raise ValueError(
        f"task.max_prompt_tokens: got {task.max_prompt_tokens}, which leaves {len(examples)} "
        f"training prompts (at rate {rate:g}; {skipped} are too long) and {len(heldout)} held-out "
        f"ones ({held_skipped} are too long) of task {task.name}; expected at least one of each"
      )
  counts = {
    "prompts": sum(len(examples) for _, examples in train),
    "heldout_prompts": len(heldout),
    "prompts_too_long": skipped,
    "heldout_prompts_too_long": held_skipped,
  }
  if me.restored is None:
    me.records.task(counts)
    if me.config.warm_start.steps:
      _check_demonstrations(me, train)
  me.screen.say(
    f"task {task.name}: {counts['prompts']} prompts, {len(heldout)} held out, {skipped} and "
    f"{held_skipped} too long"
  )
  return train, heldout


def initial_state(me: Learner, train):
  """(state, reference parameters or None): restored, or fresh and warm-started."""
  choices, restored = me.choices, me.restored
  wants_reference = choices.objective.choices.needs_reference
  if restored is not None:
    me.screen.say(f"resuming from the checkpoint of step {restored.step}")
    for version, tensors in restored.versions.items():
      me.front.weights.put(version, tensors)
    for row in restored.position["evaluations"]:
      me.desk.ask(row["phase"], version=row["version"], step=row["step"])
    if not wants_reference:
      return restored.state, None
    shardings = state_lib.shardings(choices.model, me.mesh, choices.optimizer).params
    return restored.state, me.checkpoints.restore_initial(restored.state.params, shardings)
  if me.config.model.checkpoint:
    state = _imported_state(me)
  else:
    state = state_lib.create(choices.model, me.mesh, choices.optimizer, me.config.seed)
  if me.config.warm_start.steps:
    me.front.publish(types.RAW_VERSION, state.params)
    me.desk.ask("before warm start", version=types.RAW_VERSION, step=0)
    state = _warm_start(me, state, train)
  if not wants_reference:
    return state, None
  me.checkpoints.save_initial(state.params)
  return state, jax.tree.map(jnp.copy, state.params)


def _imported_state(me: Learner) -> state_lib.TrainState:
  """The weights of a published checkpoint, each device reading its own part."""
  found = pretrained.Checkpoint(pathlib.Path(me.config.model.checkpoint))
  me.screen.say(f"weights of {found.directory}")
  shardings = state_lib.shardings(me.choices.model, me.mesh, me.choices.optimizer)
  return state_lib.from_params(found.load(shardings.params), me.choices.optimizer, me.mesh)


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


def _warm_start(me: Learner, state, train) -> state_lib.TrainState:
  settings = me.config.warm_start
  optimizer = state_lib.make_optimizer(
    learning_rate=settings.learning_rate,
    num_steps=settings.steps,
    warmup_steps=settings.steps // 20,
    # Constant to the end: after a decay to zero, RL's first updates would undo the fine tuning.
    schedule="constant",
  )
  choices = dataclasses.replace(me.choices, optimizer=optimizer)
  demonstrations = stream.of(_that_fit(me, train), me.config.seed + 1)

  def next_batch(at_step: int) -> types.Batch:
    chosen = [demonstrations[at_step * settings.rows + i] for i in range(settings.rows)]
    pairs = [(e.prompt_tokens, e.demonstration_tokens) for e in chosen]
    batch = batching.demonstration_batch(pairs, num_tokens=parts.row_tokens(me.config))
    return state_lib.place_batch(me.mesh, batch)

  losses = []

  def write(at_step: int, loss: float) -> None:
    losses.append(loss)
    me.records.warm_start(at_step, loss)
    me.desk.collect()

  state = warm_start.run(
    choices,
    state_lib.from_params(state.params, optimizer, me.mesh),
    num_steps=settings.steps,
    next_batch=next_batch,
    write=write,
    stop_loss=settings.stop_loss,
    should_stop=me.stop.is_set,
  )
  if me.stop.is_set():
    raise loop.Stopped
  me.screen.say(f"warm start ended after {len(losses)} steps, loss {losses[-1]:.3f}")
  return state_lib.from_params(state.params, me.choices.optimizer, me.mesh)
