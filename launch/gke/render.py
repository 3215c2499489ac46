"""Writes what one run on GKE needs, from its values.

  python launch/gke/render.py my_values.yaml                  JobSet and Deployment, on stdout
  python launch/gke/render.py my_values.yaml --part=queue     a queue of Kueue for the run
  python launch/gke/render.py my_values.yaml --part=sandbox   pods for the policy's programs
  python launch/gke/render.py my_values.yaml --part=pools     commands that make its node pools
  python launch/gke/render.py my_values.yaml --print=name,address  values, for scripts

values.yaml beside this file is complete: a file of values has the same keys.
"""

import argparse
import math
import pathlib
import re
import shlex
import sys
from typing import NamedTuple

import jinja2
import yaml

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import flags

_HERE = pathlib.Path(__file__).parent
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")  # a host's name, with room for what is added


class ValuesError(ValueError):
  """A value that no cluster could use: names it and says what was expected."""


class Generation(NamedTuple):
  """How GKE calls a generation of TPUs, and its machines."""

  accelerator: str  # node label cloud.google.com/gke-tpu-accelerator
  machine: str  # machine type, without -4t for 4 chips
  chips: tuple[int, ...]  # that a host may have; hosts of larger slices have 4
  dimensions: int  # of a topology
  devices: int = 1  # per chip
  policy: bool = False  # slices of several hosts: a workload policy in place of --tpu-topology


# From "Plan TPUs in GKE" and xpk 1.9 (core/system_characteristics.py), 2026.
GENERATIONS = {
  "v5e": Generation("tpu-v5-lite-podslice", "ct5lp-hightpu", (1, 4, 8), 2),
  "v5p": Generation("tpu-v5p-slice", "ct5p-hightpu", (4,), 3),
  "v6e": Generation("tpu-v6e-slice", "ct6e-standard", (1, 4, 8), 2),
  "tpu7x": Generation("tpu7x", "tpu7x-standard", (1, 4), 3, devices=2, policy=True),
}


def load(path: pathlib.Path) -> dict:
  """The checked values of a file, with what follows from them.

  That is `address`, the host name of the learner's first process; `bucket`, or None; and for the
  learner and the samplers `accelerator`, `hosts` and `devices` (of one slice), `chips_per_host`,
  `machine` and `reservation` (its name, or None).
  """
  values = yaml.safe_load(path.read_text())
  _compare(values, yaml.safe_load((_HERE / "values.yaml").read_text()), "")
  if not _NAME.fullmatch(values["name"]):
    raise ValuesError(
      f"name: got {values['name']!r}, expected at most 32 of a-z, 0-9 and -, the first a letter"
    )
  for role, is_slice in (("learner", True), ("samplers", False)):
    values[role] |= _hardware(role, values[role], is_slice=is_slice)
  _check_card(values["learner"], values["samplers"])
  bucket = re.fullmatch(r"gs://([^/]+)", values["shared"])
  address = f"{values['name']}-learner-0-0.{values['name']}"
  return values | {"address": address, "bucket": bucket[1] if bucket else None}


def _compare(got, model, name: str) -> None:
  """The same keys and kinds of values as in the model, and nothing left empty."""
  if name == ".security":  # the cluster's own words
    return
  if model is None and (got is None or isinstance(got, str)):
    return
  if type(got) is not type(model):
    raise ValuesError(
      f"{name[1:] or 'values'}: got {got!r}, expected {type(model).__name__}, as {model!r}"
    )
  if got == "":
    raise ValuesError(f"{name[1:]}: got '', expected a value; values.yaml says of what")
  if not isinstance(model, dict):
    return
  for key in [*model, *got]:
    if key not in got:
      raise ValuesError(f"{name}.{key}"[1:] + f": missing, expected such as {model[key]!r}")
    if key not in model:
      raise ValuesError(f"{name}.{key}"[1:] + f": unknown, expected one of {', '.join(model)}")
    _compare(got[key], model[key], f"{name}.{key}")


def _hardware(role: str, part: dict, *, is_slice: bool) -> dict:
  """What follows from generation, topology and capacity; a sampler has one host."""
  generation = GENERATIONS.get(part["generation"])
  if generation is None:
    raise ValuesError(
      f"{role}.generation: got {part['generation']!r}, expected {', '.join(GENERATIONS)}"
    )
  topology = part["topology"]
  chips = math.prod(map(int, topology.split("x"))) if re.fullmatch(r"\d+(x\d+)+", topology) else 0
  per_host = 4 if is_slice and chips > 4 else chips
  if (
    per_host not in generation.chips
    or chips % per_host
    or (topology.count("x") + 1 != generation.dimensions)
  ):
    hosts = "a slice" if is_slice else "one host"
    such = "2x2" if generation.dimensions == 2 else "2x2x1"
    raise ValuesError(
      f"{role}.topology: got {topology!r}, expected that of {hosts} of {part['generation']}, "
      f"such as {such}"
    )
  capacity = re.fullmatch(r"on-demand|spot|reservation/(.+)", part["capacity"])
  if not capacity:
    raise ValuesError(
      f"{role}.capacity: got {part['capacity']!r}, expected on-demand, spot or reservation/NAME"
    )
  return {
    "accelerator": generation.accelerator,
    "hosts": chips // per_host,
    "chips_per_host": per_host,
    "devices": chips * generation.devices,
    "machine": f"{generation.machine}-{per_host}t",
    "reservation": capacity[1],
  }


def _check_card(learner: dict, samplers: dict) -> None:
  """Compares the card's devices with those of the hosts, unless the card is in the image only."""
  cards = [flag.partition("=")[2] for flag in learner["flags"] if flag.startswith("--config=")]
  if not (cards and pathlib.Path(cards[0]).is_file()):
    return
  keys = [flag for flag in learner["flags"] if flag.startswith("--config.")]
  try:
    config = config_lib.load(cards[0])
    config_lib.override(config, [flags.key_and_text(key) for key in keys])
  except config_lib.ConfigError as error:
    raise ValuesError(f"learner.flags: {error}") from None
  got, there = math.prod(config.mesh.values()), learner["slices"] * learner["devices"]
  if got != there:
    shape = ", ".join(f"--config.mesh.{axis}={size}" for axis, size in config.mesh.items())
    raise ValuesError(
      f"learner.flags: got a mesh of {got} devices ({shape}), expected {there}, as many as "
      f"{learner['slices']} x {learner['topology']} of {learner['generation']} have"
    )
  got = config.sampler.data * config.sampler.tensor
  if got > samplers["devices"]:
    raise ValuesError(
      f"learner.flags: got {got} devices per sampler (sampler.data x sampler.tensor), expected at "
      f"most the {samplers['devices']} of {samplers['topology']} of {samplers['generation']}"
    )


def render(values: dict, template: str) -> str:
  """A template beside this file, filled in."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE), undefined=jinja2.StrictUndefined, autoescape=False
  )
  return environment.get_template(template).render(values)


def queue(values: dict) -> str:
  """A queue of Kueue with as much as learner and samplers need together, one flavor per generation.

  Raises:
    ValuesError: the values name no queue.
  """
  if not values["queue"]:
    raise ValuesError("queue: got None, expected the name of the queue to make")
  flavors = {}
  for part, hosts in (
    (values["learner"], values["learner"]["hosts"] * values["learner"]["slices"]),
    (values["samplers"], values["samplers"]["replicas"]),
  ):
    found = flavors.setdefault(part["generation"], {"chips": 0, "cpu": 0, "memory_gib": 0})
    found |= {"generation": part["generation"], "accelerator": part["accelerator"]}
    found["chips"] += hosts * part["chips_per_host"]
    found["cpu"] += hosts * part["cpu"]
    found["memory_gib"] += hosts * part["memory_gib"]
  return render(values | {"flavors": list(flavors.values())}, "queue.yaml.j2")


def sandbox(values: dict) -> str:
  """A warm pool of agent-sandbox, and the samplers' right to claim pods of it.

  Raises:
    ValuesError: the values name no pool or no image.
  """
  for key in ("pool", "image"):
    if not values["sandbox"][key]:
      raise ValuesError(f"sandbox.{key}: got None, expected that of the pods to make")
  return render(values, "sandbox.yaml.j2")


def pools(values: dict) -> list[list[str]]:
  """Commands that make the node pools: one per slice of the learner, one for all samplers.

  Raises:
    ValuesError: the values do not say of which cluster.
  """
  cluster = values["cluster"]
  for key, value in cluster.items():
    if not re.fullmatch(r"[-.:a-z0-9]+", value or ""):
      raise ValuesError(f"cluster.{key}: got {value!r}, expected the one that node pools are for")
  name, learner, samplers = values["name"], values["learner"], values["samplers"]
  project = f"--project={cluster['project']}"
  create = ["gcloud", "container", "node-pools", "create"]
  where = [
    project,
    f"--cluster={cluster['name']}",
    f"--location={cluster['location']}",
    f"--node-locations={cluster['zone']}",
    "--workload-metadata=GKE_METADATA",  # workload identity
    "--scopes=cloud-platform",
  ]
  commands, shape = [], []
  if learner["hosts"] > 1:
    shape = [f"--tpu-topology={learner['topology']}"]
    if GENERATIONS[learner["generation"]].policy:
      shape = [f"--placement-policy={name}"]
      policy = [
        "gcloud",
        "compute",
        "resource-policies",
        "create",
        "workload-policy",
        name,
        project,
      ]
      policy += [f"--region={cluster['zone'].rpartition('-')[0]}", "--type=HIGH_THROUGHPUT"]
      commands.append([*policy, f"--accelerator-topology={learner['topology']}"])
  for i in range(learner["slices"]):
    size = [f"--num-nodes={learner['hosts']}"]
    commands.append([*create, f"{name}-{i}", *where, *_machines(learner), *size, *shape])
  size = ["--num-nodes=0", "--enable-autoscaling", "--min-nodes=0"]
  size.append(f"--max-nodes={samplers['replicas']}")
  commands.append([*create, f"{name}-sampler", *where, *_machines(samplers), *size])
  return commands


def _machines(part: dict) -> list[str]:
  flags = [f"--machine-type={part['machine']}"]
  if part["capacity"] == "spot":
    flags.append("--spot")
  if part["reservation"]:
    flags += ["--reservation-affinity=specific", f"--reservation={part['reservation']}"]
  return flags


def run(values: dict) -> str:
  """The JobSet of the learner and the Deployment of the samplers."""
  return render(values, "manifest.yaml.j2")


MANIFESTS = {"queue": queue, "sandbox": sandbox}


def main() -> int:
  """Returns 2 after a wrong value."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("values", type=pathlib.Path)
  parser.add_argument("--part", choices=["run", *MANIFESTS, "pools"], default="run")
  parser.add_argument("--print", dest="one", metavar="NAMES", help="print these values only")
  arguments = parser.parse_args()
  try:
    values = load(arguments.values)
    if arguments.one:
      print(*(values[name] for name in arguments.one.split(",")))
    elif arguments.part == "pools":
      print("\n".join(shlex.join(command) for command in pools(values)))
    else:
      print(MANIFESTS.get(arguments.part, run)(values))
  except (ValuesError, OSError, yaml.YAMLError) as error:
    print(f"{arguments.values}: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
