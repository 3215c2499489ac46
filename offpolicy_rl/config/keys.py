"""The keys of a configuration, which `configs/base.py` defines with these functions.

All lists of keys (defaults, checks, `offpolicy-rl keys`, the table of configs/README.md) come from
there. Imports no JAX.
"""

import datetime
import functools
import json
import math
import operator
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from offpolicy_rl import losses

_BOUNDS = {
  "above": operator.gt,
  "at_least": operator.ge,
  "below": operator.lt,
  "at_most": operator.le,
  "a_multiple_of": lambda x, n: x % n == 0,
}
MAX_INTEGER = 2**31 - 1  # of any key; counts of steps and tokens are int32 in arrays and messages


class Key(NamedTuple):
  """A key: its default, allowed values and meaning."""

  default: Any  # None = unset, allowed only for keys with this default
  kind: type
  expected: str  # the allowed values, in words
  is_good: Callable[[Any], bool]  # whether a value of this type is allowed
  meaning: str = ""

  def means(self, meaning: str) -> "Key":
    """Adds the meaning, with unit and reason."""
    return self._replace(meaning=meaning)

  def has_type(self, value: Any) -> bool:
    """Whether a value has this key's type; an int may stand for a float, a bool not for an int."""
    if self.kind is float and type(value) is int:
      return abs(value) <= sys.float_info.max
    return type(value) is self.kind


def integer(default: int, **bounds: int) -> Key:
  """A whole number; `bounds` are `above`, `at_least`, `below`, `at_most` and `a_multiple_of`."""
  return _bounded(int, default, bounds)


def number(default: float, **bounds: float) -> Key:
  """A finite float; `bounds` as in `integer`."""
  return _bounded(float, default, bounds)


def _bounded(kind: type, default: float, bounds: Mapping[str, float]) -> Key:
  expected = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
  is_finite = lambda x: -math.inf < x < math.inf  # of any int, which math.isfinite is not
  is_good = lambda x: is_finite(x) and all(_BOUNDS[name](x, n) for name, n in bounds.items())
  return Key(default, kind, expected, is_good)


def switch(default: bool) -> Key:
  """True or False."""
  return Key(default, bool, "True or False", lambda x: True)


def one_of(default: str, allowed: Iterable[str]) -> Key:
  """One of a few words."""
  return Key(default, str, f"one of {', '.join(allowed)}", lambda x: x in allowed)


def chosen_from(default: str, allowed: Iterable[str]) -> Key:
  """One or more of a few words, separated by commas without spaces."""
  is_good = lambda x: set(x.split(",")) <= set(allowed)
  return Key(default, str, f"some of {','.join(allowed)}", is_good)


def text(
  default: str, expected: str = "a text", is_good: Callable[[str], bool] = lambda x: True
) -> Key:
  """Any text for which `is_good`."""
  return Key(default, str, expected, is_good)


def regular_expression(default: str) -> Key:
  """A pattern of Python's `re`, or ""."""
  return _parsed(default, "a regular expression of Python, or '' for none", re.compile)


def day(default: str) -> Key:
  """YYYY-MM-DD, or ""."""
  return _parsed(default, "YYYY-MM-DD, or ''", datetime.date.fromisoformat)


def json_texts(default: str) -> Key:
  """A JSON list of texts that are not empty, or ""."""
  is_good = lambda items: isinstance(items, list) and all(isinstance(x, str) and x for x in items)
  return _parsed(default, "a JSON list of texts, or '' for none", json.loads, is_good)


def json_object(default: str, *, without: Iterable[str]) -> Key:
  """A JSON object without some names, or ""."""
  expected = f"a JSON object of variables other than {', '.join(without)}, or ''"
  is_good = lambda items: isinstance(items, dict) and not items.keys() & set(without)
  return _parsed(default, expected, json.loads, is_good)


def json_objects(default: str) -> Key:
  """A JSON list of objects, an object of such lists, or ""."""
  expected = "a JSON list of objects, an object of such lists, or ''"
  listed = lambda items: isinstance(items, list) and all(isinstance(x, dict) for x in items)
  is_good = lambda x: listed(x) or (isinstance(x, dict) and all(map(listed, x.values())))
  return _parsed(default, expected, json.loads, is_good)


def _parsed(
  default: str,
  expected: str,
  parse: Callable[[str], Any],
  holds: Callable[[Any], bool] = lambda parsed: True,
) -> Key:
  """A text that is empty, or that can be parsed to a value for which `holds`."""

  def is_good(value: str) -> bool:
    try:
      return not value or holds(parse(value))
    except (ValueError, re.error, RecursionError, OverflowError):
      return False

  return Key(default, str, expected, is_good)


def objective_keys(preset: str) -> dict[str, Key]:
  """A key for each choice of an objective; unset ones are as in the preset."""
  keys = {"objective.name": one_of(preset, sorted(losses.PRESETS)).means("the preset")}
  for field in losses.choices.OVERRIDABLE[1:]:
    key = Key(None, type(field.default), field.metadata["expected"], field.metadata["holds"])
    keys[f"objective.{field.name}"] = key.means(field.metadata["meaning"])
  return keys


def locked_config(groups: Mapping[str, Mapping[str, Key]]) -> config_dict.ConfigDict:
  """The defaults of all keys; unset ones keep their type."""
  nested = {}
  for name, key in _flat(groups).items():
    section, _, last = name.rpartition(".")
    value = config_dict.placeholder(key.kind) if key.default is None else key.default
    (nested.setdefault(section, {}) if section else nested)[last] = value
  return config_dict.ConfigDict(nested).lock()


@functools.cache
def groups() -> dict[str, dict[str, Key]]:
  """{heading: keys} of configs/base.py, of the installed package or of this checkout."""
  package = pathlib.Path(__file__).parent.parent
  for root in (package / "shipped", package.parent):
    if (root / "configs" / "base.py").is_file():
      return runpy.run_path(str(root / "configs" / "base.py"))["GROUPS"]
  raise FileNotFoundError(f"configs/base.py: neither in {package}/shipped nor beside {package}")


@functools.cache
def all_keys() -> dict[str, Key]:
  """{"section.name": Key} of a configuration."""
  return _flat(groups())


def _flat(groups: Mapping[str, Mapping[str, Key]]) -> dict[str, Key]:
  return {name: key for keys in groups.values() for name, key in keys.items()}
