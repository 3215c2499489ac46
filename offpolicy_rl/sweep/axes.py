"""Lists of settings: grids, columns side by side, random draws, and their products."""

import itertools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from offpolicy_rl.config.text import ConfigError

Settings = list[dict[str, Any]]
Distribution = Callable[[float], object]  # maps a uniform number in [0, 1) to a value
_DIGITS = 4  # of a drawn number


def grid(axes: dict[str, Iterable]) -> Settings:
  """Every combination of the values; the last key changes fastest.

  grid({"lag.max_lag": [0, 16], "seed": [0, 1]}) has four settings.
  """
  rows = itertools.product(*_columns("grid", axes).values())
  return [dict(zip(axes, row, strict=True)) for row in rows]


def zipped(columns: dict[str, Iterable]) -> Settings:
  """Zips the values: the first of every key, the second of every key, ...

  zipped({"lag.max_lag": [0, 64], "learner.learning_rate": [1e-3, 3e-4]}) has two settings.
  """
  rows = _columns("zipped", columns)
  lengths = {key: len(values) for key, values in rows.items()}
  if len(set(lengths.values())) > 1:
    raise ConfigError(f"sweep.zipped: got {lengths} values, expected as many for every key")
  return [dict(zip(columns, row, strict=True)) for row in zip(*rows.values(), strict=True)]


def product(*parts: Settings) -> Settings:
  """Combines every setting of each part with all others; the last part changes fastest."""
  settings = []
  for row in itertools.product(*parts):
    keys = [key for part in row for key in part]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
      raise ConfigError(f"sweep.product: {twice} is in two of the parts, expected in one")
    settings.append({key: value for part in row for key, value in part.items()})
  return settings


def seeds(count: int) -> Settings:
  """Settings with seed 0 to count - 1."""
  return [{"seed": seed} for seed in range(count)]


def draws(count: int, axes: dict[str, Distribution], seed: int = 0) -> Settings:
  """`count` random settings; the same seed gives the same ones, whatever the count.

  draws(20, {"learner.learning_rate": log_uniform(1e-4, 1e-2), "objective.beta": choice(0.1, 1.0)})
  """
  for key, distribution in axes.items():
    if not callable(distribution):
      raise ConfigError(
        f"sweep.draws: {key}: got {distribution!r}, expected uniform(...), log_uniform(...) or "
        "choice(...)"
      )
  streams = {key: random.Random(f"{seed} {key}") for key in axes}
  return [{key: axes[key](streams[key].random()) for key in axes} for _ in range(count)]


def uniform(low: float, high: float) -> Distribution:
  """A number between low and high, with four digits."""
  _check_range("uniform", low < high, low, high, "low < high")
  return lambda at: _rounded(low + (high - low) * at, low, high)


def log_uniform(low: float, high: float) -> Distribution:
  """A number between low and high, uniform on a log scale, with four digits."""
  _check_range("log_uniform", 0 < low < high, low, high, "0 < low < high")
  return lambda at: _rounded(low * math.exp(math.log(high / low) * at), low, high)


def choice(*values: object) -> Distribution:
  """One of the values."""
  if not values:
    raise ConfigError("sweep.choice: got no values, expected at least one")
  return lambda at: values[int(at * len(values))]


def _check_range(name: str, good: bool, low: float, high: float, expected: str) -> None:
  if not good:
    raise ConfigError(f"sweep.{name}: got {low}, {high}, expected {expected}")


def _rounded(value: float, low: float, high: float) -> float:
  return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


def _columns(name: str, axes: dict[str, Iterable]) -> dict[str, list]:
  for key, values in axes.items():
    if isinstance(values, str) or not isinstance(values, Iterable):
      raise ConfigError(f"sweep.{name}: {key}: got {values!r}, expected a list of values")
  return {key: list(values) for key, values in axes.items()}
