"""Compiles the learner's step and the sampler's decoding for devices that need not exist."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.learner import teacher as teacher_lib
from offpolicy_rl.model import cost, decoder, lora, paging, policy, sharding
from offpolicy_rl.planning import collectives
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.roles import build, build_learner
from offpolicy_rl.sampler import generation, sizing

_USED = re.compile(r"Used ([\d.]+)([KMG])i?B? of ([\d.]+)([KMG])i?B?")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program; bytes are per device."""

  name: str
  devices: int
  compile_seconds: float  # of CPU
  peak_bytes: int  # with arguments
  argument_bytes: int  # with what else rests on the device
  temporary_bytes: int
  fits: bool
  flops: int  # of its models, on all devices (`model/cost.py`)
  traffic: dict  # collective -> (number, bytes)
  largest: list[tuple[str, int]]  # largest arguments: (name, bytes)


class _Learner(NamedTuple):
  """Shapes, and on which devices they are, of all that a learner keeps for its largest batch."""

  choices: step.StepChoices
  state: state_lib.TrainState
  reference: policy.Params | None
  batch: types.Batch
  lengths: Sequence[tuple[int, Sequence[int]]]  # of the batch's groups, for `cost.work`
  teacher: tuple[step.StepChoices, policy.Params] | None

  def work(self, model: decoder.DecoderConfig, layout: str) -> cost.Work:
    return cost.work(model, self.lengths, shared=layout == packing.SHARED)


def learner(
  config: ConfigDict,
  model: decoder.DecoderConfig,
  mesh: Mesh,
  capacity: int,
  teacher: decoder.DecoderConfig | None = None,
) -> list[Program]:
  """Compiles the learner's step and, if there is one, its teacher's pass over the same batch.

  Both for the largest possible batch. The parameters that only the other one uses count, too.
  """
  kept, layout = _learner(config, model, mesh, teacher), config.learner.layout
  choices, judge = kept.choices, kept.teacher
  shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
  compiled = _compiled(
    "train step",
    step.compile_step(choices, shardings),
    (kept.state, kept.batch, kept.reference),
    mesh,
    capacity,
    flops=choices.flops(kept.work(model, layout)),
    resting=judge and judge[1],
  )
  if judge is None:
    return [compiled]
  of_teacher = _compiled(
    "teacher",
    teacher_lib.compile_logprobs(judge[0], mesh),
    (judge[1], kept.batch._replace(teacher_logprobs=None)),
    mesh,
    capacity,
    flops=cost.forward_flops(judge[0].model, kept.work(judge[0].model, layout)),
    resting=(kept.state, kept.reference),
  )
  return [compiled, of_teacher]


def _learner(config, model, mesh: Mesh, teacher: decoder.DecoderConfig | None) -> _Learner:
  choices = build_learner.step_choices(config, model, mesh)
  groups = _longest_groups(config)
  limits = build.limits(config, group_size=config.learner.group_size)
  batch = batching.make_batch(groups, limits, config_lib.batch_parts(config.learner))
  judge = None
  if teacher is not None:
    batch = batch._replace(teacher_logprobs=batch.sampler_logprobs)
    shapes = policy.cast(teacher, policy.shapes(teacher))
    judge = build_learner.step_choices(config, teacher, mesh), _params(shapes, mesh)
  place = lambda x: _struct(x, sharding.batch_sharding(mesh, x.ndim))
  shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
  state = jax.tree.map(_struct, state_lib.shapes(choices.model, choices.optimizer), shardings)
  frozen = model.lora_rank or choices.objective.choices.needs_reference
  reference = _params(policy.shapes(lora.base_config(choices.model)), mesh) if frozen else None
  placed, lengths = jax.tree.map(place, batch), batching.lengths(groups)
  return _Learner(choices, state, reference, placed, lengths, judge)


def _params(shapes: policy.Params, mesh: Mesh) -> policy.Params:
  return jax.tree.map(_struct, shapes, policy.param_shardings(mesh, shapes))


def decode(
  config: ConfigDict, model: decoder.DecoderConfig, devices: Sequence[jax.Device], capacity: int
) -> Program:
  """Compiles a sampler's decoding, with all slots in use and rows of full length."""
  sampler, task = config.sampler, config.task
  mesh = sharding.make_mesh(tensor=sampler.tensor, devices=devices)
  model = dataclasses.replace(lora.base_config(model), int8_weights=sampler.int8_weights)
  sizes = build.engine_sizes(
    config, group_size=config.learner.group_size, max_prompt_tokens=task.max_prompt_tokens
  )
  model = sizing.with_attention(model, sizes, mesh)
  replicated = NamedSharding(mesh, PartitionSpec())
  heads = NamedSharding(mesh, sharding.spec(None, None, "kv_heads", None, None))
  shapes = policy.cast(model, policy.shapes(model))
  params = jax.tree.map(_struct, shapes, policy.param_shardings(mesh, shapes))
  pool = jax.eval_shape(lambda: paging.empty(model, sizes.pages, sizes.page_tokens))
  slots = jax.eval_shape(lambda: generation.empty(sizes.slots, sizes.max_tokens, sizes.candidates))
  tables = jax.ShapeDtypeStruct((sizes.slots, sizes.row_pages), jnp.int32, sharding=replicated)
  arguments = (
    params,
    jax.tree.map(lambda x: _struct(x, replicated), slots),
    jax.tree.map(lambda x: _struct(x, heads), pool),
    tables,
  )
  jitted = jax.jit(
    lambda params, *others: generation.decode(model, params, *others, steps=sizes.steps, ends=(0,)),
    donate_argnums=(1, 2),
  )
  longest = task.max_prompt_tokens + task.max_completion_tokens
  flops = cost.decode_step(model, [longest] * sizes.slots).flops * sizes.steps
  return _compiled("decode", jitted, arguments, mesh, capacity, flops)


def _longest_groups(config: ConfigDict) -> list[types.FinishedGroup]:
  task, learner = config.task, config.learner
  prompt = np.zeros(task.max_prompt_tokens, np.int32)
  tokens = np.zeros(task.max_completion_tokens, np.int32)
  logprobs = np.zeros(tokens.size, np.float32)
  candidates = None
  if number := config.sampler.top_logprobs:
    candidates = types.Candidates(*(np.repeat(x[:, None], number, 1) for x in (tokens, logprobs)))
  one = types.Trajectory(tokens, logprobs, tokens, False, 0.0, candidates=candidates)
  groups = []
  for g in range(learner.prompts_per_step):
    ticket = types.Ticket(str(g), types.TRAIN, 0, g, prompt, "", 0, 0, learner.group_size, 1.0)
    group = types.Group(str(g), (one,) * learner.group_size)
    groups.append(types.FinishedGroup(ticket, group, 0))
  return groups


def _struct(x, place) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _compiled(
  name: str, jitted, arguments, mesh: Mesh, capacity: int, flops: int, resting: Any = None
) -> Program:
  """`resting`: shapes of arrays that stay on the devices meanwhile."""
  started = time.process_time()
  rest = sum(_bytes_on_device(x) for x in jax.tree.leaves(resting) if not _in_host_memory(x))
  given = sum(_bytes_on_device(x) for x in jax.tree.leaves(arguments)) + rest
  try:
    with jax.sharding.set_mesh(mesh):
      compiled = jitted.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    seconds = time.process_time() - started
    peak, fits, traffic = _used(str(error)) or capacity + 1, False, {}
    temporary = peak - given
  else:
    seconds = time.process_time() - started
    memory, traffic = compiled.memory_analysis(), collectives.parse(compiled.as_text())
    given, temporary = memory.argument_size_in_bytes + rest, memory.temp_size_in_bytes
    peak = memory.peak_memory_in_bytes + rest
    fits = peak <= capacity
  return Program(
    name=name,
    devices=mesh.size,
    compile_seconds=seconds,
    peak_bytes=peak,
    argument_bytes=given,
    temporary_bytes=temporary,
    fits=fits,
    flops=flops,
    traffic=traffic,
    largest=_largest((*arguments, resting)),
  )


def _used(message: str) -> int | None:
  match = _USED.search(message)
  return match and round(float(match[1]) * _UNITS[match[2]])


def _largest(arguments, most: int = 8) -> list[tuple[str, int]]:
  leaves = jax.tree_util.tree_flatten_with_path(arguments)[0]
  sized = [(jax.tree_util.keystr(path), _bytes_on_device(x)) for path, x in leaves]
  return sorted(sized, key=lambda row: -row[1])[:most]


def _in_host_memory(x: jax.ShapeDtypeStruct) -> bool:
  return x.sharding.memory_kind == "pinned_host"


def _bytes_on_device(x: jax.ShapeDtypeStruct) -> int:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return 8 * math.prod(x.shape)
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
