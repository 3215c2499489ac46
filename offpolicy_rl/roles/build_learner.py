"""Builds what samplers do without: the training step, tickets, stores, checkpoints' parameters."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses
from offpolicy_rl.learner import checkpoint, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import attention, decoder, lora
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.replay import (
  admission,
  dynamic_sampling,
  lag,
  ledger,
  packing,
  schedule,
  store,
  unanswerable,
)
from offpolicy_rl.roles import build
from offpolicy_rl.system import memory
from offpolicy_rl.tasks import stream, thoughts
from offpolicy_rl.transport import weights

_MAX_REFILLS = "learner.max_refills"


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
      branches=learner.layout == packing.SHARED or config.environment.history == thoughts.REWRITE,
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


def lag_control(config: ConfigDict) -> lag.LagControl:
  """Makes the lag control; reads the recorded schedule of a replay."""
  recorded = None
  if config.lag.mode == lag.REPLAY:
    recorded = schedule.read(pathlib.Path(config.lag.schedule))
    if len(recorded.versions) < config.learner.steps:
      raise schedule.ScheduleError(
        f"learner.steps: got {config.learner.steps}, but {config.lag.schedule} recorded only "
        f"{len(recorded.versions)}"
      )
    if {len(row) for row in recorded.versions} - {config.learner.prompts_per_step}:
      raise schedule.ScheduleError(
        f"learner.prompts_per_step: got {config.learner.prompts_per_step}, but "
        f"{config.lag.schedule} recorded {len(recorded.versions[0])} groups per step"
      )
    refills = config_lib.flatten(config_lib.from_json(recorded.config_json)).get(_MAX_REFILLS)
    if refills != config.learner.max_refills:  # spare prompts are numbered by it
      raise schedule.ScheduleError(
        f"{_MAX_REFILLS}: got {config.learner.max_refills}, but {config.lag.schedule} recorded "
        f"{refills}"
      )
    most = max((attempt for row in recorded.attempts for attempt in row), default=0)
    if most > config.learner.max_refills + admission.SPARES:
      raise schedule.ScheduleError(
        f"--replay: {config.lag.schedule}: got {most} attempts, expected at most "
        f"{config.learner.max_refills + admission.SPARES}: {_MAX_REFILLS} and the spare prompts"
      )
  return lag.LagControl(config.lag.mode, config.lag.max_lag, recorded, config.lag.kept_versions)


def make_store(
  config: ConfigDict, model: decoder.DecoderConfig, weights_dir: str | None, session: str
) -> weights.Store:
  """Makes the store of published weights; `weights_dir`: a directory, None = they are streamed.

  Raises:
    ConfigError: those that lag makes it keep have no room in memory.
  """
  if weights_dir is None:
    _require_memory(config, model)
    return weights.WeightStore(delta_bases=config.transport.delta_bases)
  # Orbax is imported only if used.
  from offpolicy_rl.transport import weights_dir as weights_dir_lib

  return weights_dir_lib.WeightsDirectory(weights_dir, session)


def _require_memory(config: ConfigDict, model: decoder.DecoderConfig) -> None:
  versions = min(config.lag.max_lag, config.learner.steps) + 1
  if config.lag.mode != lag.FIXED or config.lag.kept_versions or versions == 1:
    return
  shapes = lora.split(policy_lib.shapes(model))[1] if model.lora_rank else policy_lib.shapes(model)
  weights_each = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  needed = versions * weights_each * np.dtype(config.transport.weights_dtype).itemsize
  if needed > (there := memory.total_bytes()):
    raise config_lib.ConfigError(
      f"lag.max_lag: got {config.lag.max_lag} in mode {lag.FIXED}, which keeps {versions} versions "
      f"of the weights, {needed / 1e9:.1f} GB, expected at most the {there / 1e9:.1f} GB of this "
      "machine; lag.kept_versions=4 keeps 4, and the learner waits for samplers"
    )


class Queue(NamedTuple):
  """The tickets of a run, and what replaces unusable groups."""

  tickets: admission.Tickets
  ledger: ledger.Ledger
  unanswerable: unanswerable.Unanswerable
  dynamic_sampling: dynamic_sampling.DynamicSampling | None  # None = all groups are used


def make_queue(
  config: ConfigDict,
  policy: build.Policy,
  prompts: Sequence[tuple[float, Sequence]],
  control: lag.LagControl,
  groups: store.GroupStore,
) -> Queue:
  """Makes tickets for the training prompts, [(rate, prompts)] of each task; queues none yet."""
  settings, transport = config.learner, config.transport
  tickets = admission.Tickets(
    stream=stream.make_stream(prompts, config.seed),
    lag=control,
    prompts_per_step=settings.prompts_per_step,
    group_size=settings.group_size,
    temperature=config.sampler.temperature,
    max_refills=settings.max_refills,
  )
  text = lambda ticket: policy.tokenizer.decode(ticket.prompt_tokens.tolist())
  set_aside = unanswerable.Unanswerable(tickets.spare, text)
  replace = None
  if settings.max_refills and control.recorded is None:  # a replay's groups are recorded
    replace = dynamic_sampling.DynamicSampling(tickets.refill)
  tickets_ledger = ledger.Ledger(
    transport.lease_seconds,
    reissue_seconds=transport.reissue_seconds,
    recover=groups.get,
    replace=replace or (lambda finished: None),
    set_aside=set_aside,
  )
  return Queue(tickets, tickets_ledger, set_aside, replace)
