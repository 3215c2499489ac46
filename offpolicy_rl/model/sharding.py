"""Splits arrays over a device mesh.

Arrays name *logical* axes (`decoder.PARAM_AXES` for parameters, `constrain` for activations);
`names.RULES` says over which mesh axes each is split. Anything not listed is replicated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from offpolicy_rl.model.names import AXES, EXPERT, RULES


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  expert: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Mesh of shape (data, fsdp, tensor, expert) over the first devices; ValueError if it needs more.

  Where all devices of a TPU are used, neighbours in the mesh are neighbours in its torus.
  """
  devices = jax.devices() if devices is None else devices
  sizes = (data, fsdp, tensor, expert)
  size = math.prod(sizes)
  if size > len(devices):
    shape = f"data={data} x fsdp={fsdp} x tensor={tensor} x expert={expert}"
    raise ValueError(f"mesh: {shape} needs {size} devices, this machine has {len(devices)}")
  if size == len(devices):
    grid = arrange(sizes, devices)
  else:
    grid = np.array(devices[:size]).reshape(sizes)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices as an array of these sizes, in which neighbours are neighbours in a TPU's torus.

  Several slices lie one after the other along the first axis: only its sums of gradients go through
  the network between slices, which is slow.

  Raises:
    ValueError: the first axis can't be divided by the slices.
  """
  on_tpu = devices[0].platform == "tpu"
  slices = len({device.slice_index for device in devices}) if on_tpu else 1
  data, *inner = sizes
  if data % slices:
    raise ValueError(f"mesh: data={data}, expected a multiple of the {slices} slices")
  if slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
    (data // slices, *inner), (slices, *(1 for _ in inner)), devices, allow_split_physical_axes=True
  )


def spec(*logical_axes: str | None) -> PartitionSpec:
  """Logical axes of an array -> its PartitionSpec."""
  return PartitionSpec(*(RULES.get(axis) if axis else None for axis in logical_axes))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Asks for a layout of an activation; does nothing without a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*logical_axes))


def sum_over_experts(local: Callable[..., jax.Array], tokens: tuple, experts: tuple) -> jax.Array:
  """Sum of `local(first, *tokens, *experts)` over the shards of the mesh axis `expert`.

  Every shard works on all tokens (as the other axes leave them) with its experts: tokens are
  gathered and results added up. No token is sent to a certain shard, so that uneven loads need no
  capacity.

  Args:
    local: `first` is the number of the shard's first expert.
    tokens: arrays that every shard gets in full.
    experts: arrays with the experts as first axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape[EXPERT] == 1:
    return local(0, *tokens, *experts)

  def shard(tokens, experts):
    # Explicit, because the gradient of ragged_dot would miss the sum over shards.
    tokens = jax.tree.map(lambda x: jax.lax.pcast(x, (EXPERT,), to="varying"), tokens)
    first = jax.lax.axis_index(EXPERT) * experts[0].shape[0]
    return jax.lax.psum(local(first, *tokens, *experts), EXPERT)

  split = jax.shard_map(
    shard,
    in_specs=(PartitionSpec(), PartitionSpec(EXPERT)),
    out_specs=PartitionSpec(),
    axis_names={EXPERT},
  )
  return split(tokens, experts)


def by_rows(local: Callable, full: Any, rows: tuple) -> Any:
  """`local(full, *rows)` on each shard of a batch, with the array `full` complete on each.

  So `full` is gathered once and its gradient summed over the shards once, however often `local`
  uses it in a loop.

  Args:
    local: arrays whose first axis is the batch -> such arrays.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = RULES["batch"]
  if mesh.empty or all(mesh.shape[axis] == 1 for axis in axes):
    return local(full, *rows)

  def shard(full, *rows):
    """`pcast` is where the gradient of `full` joins that of the other shards."""
    return local(jax.lax.pcast(full, axes, to="varying"), *rows)

  split = PartitionSpec(axes)
  return jax.shard_map(
    shard, in_specs=(PartitionSpec(), *(split for _ in rows)), out_specs=split, axis_names=set(axes)
  )(full, *rows)


def tree_shardings(
  mesh: Mesh, tree: Any, axes_of: Callable[[tuple, Any], tuple[str | None, ...]]
) -> Any:
  """NamedSharding for every leaf; `axes_of(path, leaf)` gives its logical axes."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, spec(*axes_of(path, leaf))), tree
  )


def batch_sharding(mesh: Mesh, rank: int) -> NamedSharding:
  """Sharding of an array of a batch: [parts, rows, ...]."""
  return NamedSharding(mesh, spec(None, "batch", *(None,) * (rank - 2)))
