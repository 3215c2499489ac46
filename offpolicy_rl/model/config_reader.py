"""Reads the keys of a config.json and collects everything that is wrong with them."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
  """A condition on a value."""

  expected: str
  holds: Callable[[Any], bool]
  stand_in: Any = 2  # returned for a bad value, so that reading goes on and finds more


def _is_number(x) -> bool:
  return type(x) in (int, float) and (x == 0 or 1e-30 < abs(x) < 1e30)  # also in float32


SIZE = Kind("an integer from 1 to 2147483647", lambda x: type(x) is int and 0 < x < 2**31)
FEW = Kind("an integer from 1 to 10000", lambda x: type(x) is int and 0 < x <= 10_000)
POSITIVE = Kind("a positive number", lambda x: _is_number(x) and x > 0)
NOT_NEGATIVE = Kind("a number of at least 0", lambda x: _is_number(x) and x >= 0)
FLAG = Kind("True or False", lambda x: isinstance(x, bool))
OBJECT = Kind("an object", lambda x: isinstance(x, dict), {})


class Reader:
  """Reads keys and collects problems."""

  def __init__(self, keys: dict, family: Any):
    self.keys, self.family = keys, family  # of `families`
    self.seen = {"model_type"}
    self.problems: list[str] = []

  def get(self, key: str, kind: Kind, *, null: bool = False) -> Any:
    """The value of a key or its default; None only where that is the default or `null` is set."""
    self.seen.add(key)
    value = self.keys.get(key, self.family.defaults.get(key))
    if value is None and (null or key in self.family.nulls or key not in self.keys):
      return None
    return self.checked(key, value, kind)

  def checked(self, name: str, value: Any, kind: Kind) -> Any:
    """The value, or a stand-in after noting that it is wrong."""
    if kind.holds(value):
      return value
    self.refuse(name, value, kind.expected)
    return kind.stand_in

  def refuse(self, key: str, value: Any, expected: str) -> None:
    """Notes a value that the decoder does not support."""
    self.problems.append(f"{key}: got {abbreviate(value)}, supported: {expected}")


def abbreviate(value: Any) -> str:
  """A value as error messages show it."""
  text = repr(value)
  return text if len(text) <= 100 else f"{text[:97]}..."


def parse(text: str) -> dict:
  """The keys of a JSON object; ValueError for anything else."""
  try:
    keys = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"no JSON: {error}") from None
  if not isinstance(keys, dict):
    raise ValueError(f"got {abbreviate(keys)}, expected an object")
  return keys
