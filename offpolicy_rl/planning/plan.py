"""`offpolicy-rl plan`: whether a card fits on a pod, and the traffic between its devices."""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from importlib import metadata

import rich.console
import rich.table
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files
from offpolicy_rl.model import decoder, families, sharding
from offpolicy_rl.planning import programs, topology
from offpolicy_rl.roles import build
from offpolicy_rl.system import output

_GIB = 2**30
_PACKAGE = pathlib.Path(__file__).parent.parent


def run(
  config: ConfigDict,
  name: str,
  *,
  architecture: dict,
  cache: pathlib.Path,
  teacher: dict | None = None,
) -> dict:
  """Compiles both programs of a configuration for a topology; returns a dict for JSON.

  Args:
    config: checked.
    name: of the topology, e.g. "v5e:4x4".
    architecture: config.json of the published model.
    teacher: config.json of the teacher; None = there is none.
    cache: directory of results; known ones are read from there.

  Raises:
    ConfigError: topology and mesh do not match, or the topology is not available.
  """
  model = build.published_model(config, architecture)
  file = cache / f"{_digest(config, [architecture, teacher], name)}.json"
  if (kept := _kept(file)) is not None:
    return kept
  devices = topology.devices(name)
  mesh = dict(config.mesh)
  size = math.prod(mesh.values())
  if size != len(devices):
    shape = " x ".join(f"{axis} {count}" for axis, count in mesh.items())
    raise config_lib.ConfigError(
      f"mesh: got {shape} = {size} devices, expected the {len(devices)} of --topology={name}"
    )
  print(
    f"compiling the learner's step and the sampler's decoding for {name}, which takes a minute or "
    f"more; the result is kept in {cache}",
    file=sys.stderr,
  )
  capacity = topology.memory_bytes(name)
  judge = None
  if teacher is not None:
    judge = dataclasses.replace(families.read(teacher), compute_dtype=config.model.compute_dtype)
  made = sharding.make_mesh(**mesh, devices=devices)
  learner, *judged = programs.learner(config, model, made, capacity, judge)
  engine = topology.engine_devices(name, config.sampler.tensor)
  sampler = programs.decode(config, model, engine, capacity)
  plan = {
    "topology": name,
    "mesh": mesh,
    "parameters": _parameters(model),
    "capacity_bytes": capacity,
    "programs": [dataclasses.asdict(program) for program in (learner, *judged, sampler)],
    "advice": advice(config, learner, sampler, capacity),
  }
  try:
    cache.mkdir(parents=True, exist_ok=True)
    files.write_durably(file, json.dumps(plan, indent=1) + "\n")
  except OSError as error:  # no reason to lose the result
    print(f"--cache: the result is not kept: {error}", file=sys.stderr)
  return plan


def _kept(file: pathlib.Path) -> dict | None:
  """An earlier result; None if there is none, or it is damaged."""
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None


def _parameters(model: decoder.DecoderConfig) -> int:
  import jax

  from offpolicy_rl.model import policy

  return sum(x.size for x in jax.tree.leaves(policy.shapes(model)))


def _digest(config: ConfigDict, architectures: list[dict | None], name: str) -> str:
  """A digest of everything that the result depends on: arguments, this package, compiler."""
  sources = [path.read_bytes() for path in sorted(_PACKAGE.rglob("*.py"))]
  versions = [_version(package) for package in ("jax", "jaxlib", "libtpu")]
  texts = [config_lib.to_json(config), json.dumps(architectures, sort_keys=True), name, *versions]
  return hashlib.sha256(b"\0".join([*map(str.encode, texts), *sources])).hexdigest()[:24]


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "none"


def advice(
  config: ConfigDict, learner: programs.Program, sampler: programs.Program, capacity: int
) -> list[str]:
  """Keys that would help if a program does not fit, the cheapest first."""
  keys = []
  if not learner.fits:
    settings, rows = config.learner, config.learner.prompts_per_step * config.learner.group_size
    shards = learner.devices // config.mesh.tensor
    if settings.remat != "full":
      keys.append("learner.remat=full: layers keep their input only")
    if not settings.logprob_chunk:
      keys.append("learner.logprob_chunk=256: the logits of a row never exist at once")
    if config_lib.batch_parts(settings) * shards * 2 <= rows:
      keys.append(f"learner.microbatches={2 * settings.microbatches}: half the rows at a time")
    if config.mesh.data > 1:
      keys.append(f"mesh.fsdp={config.mesh.fsdp * config.mesh.data}, mesh.data=1: state is split")
    if learner.argument_bytes > 0.8 * capacity:
      keys.append(
        "more devices, model.lora_rank, or learner.offload_optimizer=True: state alone "
        f"takes {learner.argument_bytes / _GIB:.1f} GiB of each device"
      )
  if not sampler.fits:
    keys.append(f"sampler.tensor={2 * config.sampler.tensor}: weights and cache are split")
    keys.append("sampler.slots or sampler.cache_tokens: less cache")
    if not config.sampler.int8_weights:
      keys.append("sampler.int8_weights=True: weights take half as much as in bfloat16")
  return keys


def show(plan: dict, console: rich.console.Console | None = None) -> None:
  """Prints a plan as tables."""
  console = console or output.console()
  mesh = ", ".join(f"{axis} {count}" for axis, count in plan["mesh"].items() if count > 1)
  capacity = plan["capacity_bytes"]
  console.print(
    f"{plan['topology']}: mesh {mesh or 'of one device'}, {plan['parameters'] / 1e9:.2f} B "
    f"parameters, {capacity / _GIB:.0f} GiB per device"
  )
  table = rich.table.Table("GiB per device", "", "peak", "free", "given", "temporary", "TFLOP", "s")
  for program in plan["programs"]:
    numbers = [
      program["peak_bytes"],
      capacity - program["peak_bytes"],
      program["argument_bytes"],
      program["temporary_bytes"],
    ]
    table.add_row(
      program["name"],
      "fits" if program["fits"] else "too large",
      *(f"{number / _GIB:.2f}" for number in numbers),
      f"{program['flops'] / 1e12:.1f}",
      f"{program['compile_seconds']:.0f}",
    )
  console.print(table)
  console.print("(given: state and batch, or weights and cache; s: CPU time of compiling)")
  for program in plan["programs"]:
    for kind, (number, size) in program["traffic"].items():
      console.print(f"{program['name']}: {number} x {kind}, {size / _GIB:.3f} GiB per device")
    largest = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in program["largest"][:4])
    console.print(f"{program['name']}: largest arguments (GiB per device): {largest}")
  for line in plan["advice"]:
    console.print(f"try {line}")
