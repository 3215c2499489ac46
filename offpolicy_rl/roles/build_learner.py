"""Builds what a learner computes with, and reads checkpoints; a sampler loads none of it."""

import dataclasses
import pathlib

import jax
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses
from offpolicy_rl.learner import checkpoint, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import attention, decoder, lora
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.replay import packing
from offpolicy_rl.tasks import thoughts


def newest_params(run_dir: pathlib.Path, model: decoder.DecoderConfig) -> tuple[int, dict]:
  """Reads (step, parameters) of a run's newest checkpoint, adapters merged, on the first device.

  Raises:
    checkpoint.CheckpointError: there is none, or it is damaged.
  """
  saved, shapes = run_dir / "checkpoints", policy_lib.shapes(lora.base_config(model))
  if not model.lora_rank:
    return checkpoint.newest_params(saved, shapes)
  step, adapters = checkpoint.newest_params(saved, lora.split(policy_lib.shapes(model))[1])
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  reader = checkpoint.Checkpoints(saved, keep=1)
  base = reader.restore_initial(shapes, jax.tree.map(lambda _: here, shapes))
  reader.close()
  return step, lora.merge(model, base, adapters)


def step_choices(
  config: ConfigDict, model: decoder.DecoderConfig, mesh: jax.sharding.Mesh
) -> step.StepChoices:
  """Makes the model, objective and optimizer that the training step is compiled for."""
  learner = config.learner
  model = dataclasses.replace(
    model,
    remat=learner.remat,
    attention=attention.training_kernel(
      mesh.devices.flat[0].platform,
      compute_dtype=model.compute_dtype,
      head_dim=model.head_dim,
      branches=learner.layout == packing.SHARED or config.environment.thoughts == thoughts.DROP,
    ),
  )
  updates = config_lib.updates_per_step(learner)
  optimizer = state_lib.make_optimizer(
    learning_rate=learner.learning_rate,
    num_steps=learner.steps * updates,
    warmup_steps=learner.warmup_steps * updates,
    schedule=learner.schedule,
    adam=(learner.adam_b1, learner.adam_b2, learner.adam_eps),
    weight_decay=learner.weight_decay,
    max_grad_norm=learner.max_grad_norm,
    in_host_memory=learner.offload_optimizer,
  )
  return step.StepChoices(
    model=model,
    objective=losses.objective(config_lib.objective_choices(config)),
    optimizer=optimizer,
    temperature=config.sampler.temperature,
    logprob_chunk=learner.logprob_chunk,
    shown=learner.group_size,
    minibatches=learner.minibatches,
    epochs=learner.epochs,
    ess_target=learner.ess_target,
  )
