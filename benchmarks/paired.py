"""Paired differences over seeds, tested as one family."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from offpolicy_rl.observe.plots import mean_and_half_width

LEVEL = 0.05  # family-wise error


class Difference(NamedTuple):
  """A mean difference over seeds."""

  mean: float
  half: float  # of the 95 % interval (Student's t), not adjusted
  p: float  # two-sided, adjusted within the family

  @property
  def is_clear(self) -> bool:
    """Whether the difference is there after the adjustment."""
    return self.p < LEVEL


def p_value(differences: Sequence[float]) -> float:
  """Two-sided p of a mean of 0, Student's t."""
  from scipy import special

  count = len(differences)
  mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
  if not deviation:
    return float(mean == 0)
  t = abs(mean) / deviation * math.sqrt(count)
  return float(2 * special.stdtr(count - 1, -t))


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusted p-values: Holm, A simple sequentially rejective multiple test procedure, 1979."""
  order = sorted(range(len(p_values)), key=lambda i: p_values[i])
  adjusted, highest = [0.0] * len(p_values), 0.0
  for rank, i in enumerate(order):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
    adjusted[i] = highest
  return adjusted


def family(differences: Mapping[Any, Sequence[float]]) -> dict[Any, Difference]:
  """{name: differences by seed}, at least two each -> {name: Difference}, adjusted together."""
  adjusted = holm([p_value(values) for values in differences.values()])
  return {
    name: Difference(*mean_and_half_width(values), p)
    for (name, values), p in zip(differences.items(), adjusted, strict=True)
  }
