"""Where the devices of several TPU slices come to lie in a mesh."""

import types

import numpy as np
import pytest

from offpolicy_rl.model import sharding


def slices(count: int) -> list:
  """Stand-ins for the devices of TPU slices of 2x2 chips each."""
  return [
    types.SimpleNamespace(
      id=len(SQUARE) * index + place,
      platform="tpu",
      device_kind="TPU v5",
      slice_index=index,
      process_index=index,
      coords=(x, y, 0),
      core_on_chip=0,
    )
    for index in range(count)
    for place, (x, y) in enumerate(SQUARE)
  ]


SQUARE = ((0, 0), (1, 0), (0, 1), (1, 1))


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (4, 1, 2, 1), (2, 2, 2, 1)])
def test_only_the_data_axis_crosses_slices(sizes):
  devices = slices(2)
  grid = sharding.arrange(sizes, devices[::-1])
  assert grid.shape == sizes
  assert sorted(device.id for device in grid.flat) == list(range(8))
  where = np.vectorize(lambda device: device.slice_index)(grid)
  half = sizes[0] // 2
  assert (where[:half] == 0).all() and (where[half:] == 1).all()


def test_one_slice_needs_no_division():
  assert sharding.arrange((1, 4, 1, 1), slices(1)).shape == (1, 4, 1, 1)


def test_a_data_axis_that_slices_do_not_divide_is_refused():
  with pytest.raises(ValueError, match="mesh: data=1, expected a multiple of the 2 slices"):
    sharding.arrange((1, 8, 1, 1), slices(2))
