"""Functions of users that a configuration names as "module:function".

A sampler takes such names from its learner, which must not be able to call whatever is installed:
only functions marked for that use are called.
"""

import importlib
from collections.abc import Callable
from typing import TypeVar

_MARK = "offpolicy_rl_use"
_Function = TypeVar("_Function", bound=Callable)


def mark(function: _Function, use: str) -> _Function:
  """Marks a function for a use, e.g. "verifier"."""
  setattr(function, _MARK, use)
  return function


def resolve(name: str, use: str, *, key: str, decorator: str) -> Callable:
  """Finds "module:function"; ValueError if it does not exist, or is not marked.

  `key` names it in errors, `decorator` is what marks functions for this use.
  """
  module, _, attribute = name.partition(":")
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    reason = f" ({error})" if isinstance(error, ValueError) else ""
    raise ValueError(
      f"{key}: {name!r:.100}, expected an importable module:function{reason}"
    ) from error
  if getattr(function, _MARK, None) != use:
    raise ValueError(f"{key}: {name!r:.100}, expected a function decorated with @{decorator}")
  return function
