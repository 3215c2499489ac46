"""TPU topologies for libtpu's compiler, on machines without a TPU."""

import os
import re

from offpolicy_rl import config as config_lib

# Kind -> GiB of memory per device; vendor's documentation of each TPU version.
MEMORY_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96}
_NAME = re.compile(r"(v4|v5e|v5p|v6e|tpu7x):(\d+(?:x\d+){1,2})")
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def kind(name: str) -> str:
  """The kind of a topology: "v5e" of "v5e:4x4"; ConfigError if it is none."""
  match = _NAME.fullmatch(name)
  if not match:
    raise config_lib.ConfigError(
      f"--topology: got {name!r}, expected KIND:SHAPE, e.g. v5e:4x4 or v5p:4x4x4 "
      f"(kinds: {', '.join(MEMORY_GIB)})"
    )
  return match[1]


def memory_bytes(name: str) -> int:
  """Memory of one device."""
  return MEMORY_GIB[kind(name)] << 30


def prepare_environment() -> None:
  """Sets what libtpu needs on a machine without TPUs; call it before importing JAX."""
  os.environ.update(_ENVIRONMENT)


def devices(name: str) -> list:
  """The devices of a topology.

  Raises:
    ConfigError: libtpu is not installed or does not know the topology.
  """
  import jax.experimental.topologies

  kind(name)
  try:
    topology = jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name=name)
  except Exception as error:  # of several kinds
    raise config_lib.ConfigError(
      f"--topology: {name} is not available: {error} (is libtpu installed? pip install "
      "offpolicy-rl[aot])"
    ) from None
  return list(topology.devices)


def engine_devices(name: str, size: int) -> list:
  """`size` devices of the same kind, for an engine of a sampler."""
  shape = [1] * len(name.partition(":")[2].split("x"))
  while True:
    available = devices(f"{kind(name)}:{'x'.join(map(str, shape))}")
    if len(available) >= size:
      return available[:size]
    smallest = shape.index(min(shape))
    shape[smallest] *= 2
