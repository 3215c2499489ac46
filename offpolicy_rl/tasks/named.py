"""Functions of users that a configuration names as "module:function".

A sampler takes such names from its learner, which must not be able to call whatever is installed:
only functions marked for that use are called.
"""

import importlib
from collections.abc import Callable
from typing import TypeVar

_MARK = "offpolicy_rl_use"
_NEEDS = "offpolicy_rl_needs"
_Function = TypeVar("_Function", bound=Callable)


def mark(function: _Function, use: str) -> _Function:
  """Marks a function for a use, e.g. "verifier"."""
  setattr(function, _MARK, use)
  return function


def needs(check: Callable[[], object]) -> Callable[[_Function], _Function]:
  """Marks a function that can't be used on every machine: `check` raises ValueError there."""

  def marked(function: _Function) -> _Function:
    setattr(function, _NEEDS, check)
    return function

  return marked


def require(function: Callable) -> None:
  """Raises ValueError if the function can't be used on this machine."""
  getattr(function, _NEEDS, lambda: None)()


def _reason(module: str, error: Exception) -> str:
  """Says why a function can't be imported, and what to do about a module that is not found."""
  missing = isinstance(error, ModuleNotFoundError) and error.name
  if not missing or not module.startswith(missing):
    return f"{error!s:.200}"
  return (
    f"there is no module {missing!s:.60} in the working directory, among the installed packages or "
    "in PYTHONPATH=FOLDER"
  )


def resolve(name: str, use: str, *, key: str, decorator: str, kind: str = "function") -> Callable:
  """Finds "module:function"; ValueError if it does not exist, or is not marked.

  `key` names it in errors, `decorator` is what marks functions, or another `kind`, for this use.
  """
  module, _, attribute = name.partition(":")
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"{key}: got {name!r:.100}, expected an importable module:{kind}: {_reason(module, error)}"
    ) from error
  if getattr(function, _MARK, None) != use:
    raise ValueError(f"{key}: got {name!r:.100}, expected a {kind} decorated with @{decorator}")
  return function
