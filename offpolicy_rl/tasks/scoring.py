"""Runs verifiers in worker processes with limits of time and memory."""

import concurrent.futures
import functools
import importlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from offpolicy_rl import types
from offpolicy_rl.tasks import named, pool, quiet

_LOG = logging.getLogger(__name__)
Submitted = tuple[list[str], concurrent.futures.Future]  # completions, and their judgements to come


class Judgement(NamedTuple):
  """The judgement of one completion."""

  reward: float  # the verifier's verdict, 1.0 = right; 0.0 when it failed
  well_formed: bool  # the format's pattern was found in it; True without a pattern
  failed: bool  # the verifier crashed, ran out of time or memory, or returned no number in bounds
  parts: tuple[float, ...] = ()  # scores of a rubric (judge.py)


def verifier(function: Callable[[str, str], float]) -> Callable[[str, str], float]:
  """Marks a function as a verifier, so that task.verifier may name it."""
  return named.mark(function, "verifier")


def resolve(name: str) -> Callable[[str, str], float]:
  """The function "module:function"; ValueError if it can't be found or is no verifier."""
  decorator = "verifiers.verifier (offpolicy_rl.tasks.verifiers)"
  return named.resolve(name, "verifier", key="verifier", decorator=decorator)


def require(name: str) -> None:
  """Raises ValueError as `resolve` does, or if the verifier can't be used on this machine."""
  try:
    named.require(resolve(name))
  except ValueError as error:
    mine = str(error).startswith("verifier: ")
    raise error if mine else ValueError(f"verifier: got {name}: {error}") from None


_ALLOWED: dict[str, Callable[[str, str], float]] = {}  # filled once, when a worker starts


def allow(names: Sequence[str], modules: Sequence[str] = ()) -> None:
  """Lets answer data name these verifiers in this process; ValueError as for `resolve`.

  `modules`: imported, too; they register what a verifier asks.
  """
  _ALLOWED.update((name, resolve(name)) for name in names)
  for module in modules:
    with quiet.stderr_only_on_failure():  # of TensorFlow, once in each process
      importlib.import_module(module)


def allowed(name: str) -> Callable[[str, str], float]:
  """The verifier that answer data name; ValueError unless it was allowed.

  Answer data come over the wire, so the modules that they name are not imported.
  """
  if name not in _ALLOWED:
    known = ", ".join(_ALLOWED) or "(none)"
    raise ValueError(f"verifier: got {name!r:.100}, expected one of the configured {known}")
  return _ALLOWED[name]


def _judge(name: str, pattern: str, completion: str, answer: str) -> tuple[float, bool]:
  reward = _finite(allowed(name)(completion, answer))
  return reward, re.search(pattern, completion, re.DOTALL) is not None


def _finite(reward) -> float:
  if isinstance(getattr(reward, "item", None), Callable):  # a scalar of NumPy, JAX or PyTorch
    reward = reward.item()
  if not isinstance(reward, int | float) or not abs(reward) <= types.MAX_VERDICT:
    most = f"{types.MAX_VERDICT:g}"
    raise TypeError(
      f"the verifier returned {reward!r:.60}, expected a number from -{most} to {most}"
    )
  return float(reward)


class Scorer:
  """Judges completions in worker processes; one that fails costs only its own reward."""

  def __init__(
    self,
    verifier: str,
    *,
    workers: int,
    time_limit: float,
    memory_mb: int = 0,
    also: Sequence[str] = (),
    modules: Sequence[str] = (),
    pattern: str = "",
  ):
    """Checks that all verifiers can be imported; ValueError names the first that can't.

    Args:
      time_limit: seconds for one completion, without importing the verifier.
      memory_mb: address space that a worker may take beyond its imports; 0 = no limit.
      also: verifiers that `verifier` may call by `allowed`, imported before the limits hold.
      modules: imported then, too, and only in the workers.
      pattern: regular expression that well-formed completions match somewhere.
    """
    names = (verifier, *also)
    for name in names:  # a wrong one fails here, not in a worker
      require(name)
    self._verifier, self._pattern = verifier, pattern
    self._pool = pool.WorkerPool(
      workers,
      prepare=functools.partial(allow, names, modules),
      time_limit=time_limit,
      memory_mb=memory_mb,
    )

  def __enter__(self) -> "Scorer":
    return self

  def __exit__(self, *_: object) -> None:
    self._pool.close()

  def submit(self, completions: list[str], answer: str, _question: str = "") -> Submitted:
    """Starts judging a group; pass the result to `judgements`. Only a judge reads the question."""
    calls = [(self._verifier, self._pattern, completion, answer) for completion in completions]
    return completions, self._pool.submit(_judge, calls)

  def judgements(self, submitted: Submitted) -> list[Judgement]:
    """Waits for a group's judgements, one per completion; pool.PoolError when no worker starts."""
    completions, future = submitted
    return list(map(_judgement, completions, future.result()))


def _judgement(completion: str, result: tuple[float, bool] | pool.Failed) -> Judgement:
  if isinstance(result, pool.Failed):
    _LOG.warning("verifier failed (%s) on %.80r", result.reason, completion)
    return Judgement(0.0, well_formed=False, failed=True)
  return Judgement(*result, failed=False)
