"""The only file that names mesh axes.

Arrays name *logical* axes (`decoder.PARAM_AXES` for parameters, `constrain` for activations);
`RULES` says over which mesh axes each is split. Anything not listed is replicated.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
AXES = (DATA, FSDP, TENSOR)

RULES = {
  "batch": (DATA, FSDP),
  "embed": FSDP,
  "vocab": TENSOR,
  "heads": TENSOR,
  "kv_heads": TENSOR,
  "mlp": TENSOR,
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """Mesh of shape (data, fsdp, tensor) over the first devices.

  Raises:
    ValueError: more devices asked for than there are.
  """
  devices = jax.devices() if devices is None else devices
  size = math.prod((data, fsdp, tensor))
  if size > len(devices):
    shape = f"data={data} x fsdp={fsdp} x tensor={tensor}"
    raise ValueError(f"mesh: {shape} needs {size} devices, this machine has {len(devices)}")
  grid = np.array(devices[:size]).reshape(data, fsdp, tensor)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(*logical_axes: str | None) -> PartitionSpec:
  """Logical axes of an array -> its PartitionSpec."""
  return PartitionSpec(*(RULES.get(axis) if axis else None for axis in logical_axes))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Asks for a layout of an activation; does nothing where no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*logical_axes))


def tree_shardings(mesh: Mesh, tree, axes_of):
  """NamedSharding for every leaf; `axes_of(path, leaf)` gives its logical axes."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, spec(*axes_of(path, leaf))), tree
  )


def batch_sharding(mesh: Mesh, rank: int) -> NamedSharding:
  """Sharding of an array of a batch: [parts, rows, ...]."""
  return NamedSharding(mesh, spec(None, "batch", *(None,) * (rank - 2)))
