"""Runs a verifier in worker processes with limits of time and memory: a bad answer can hurt only
its worker.
"""

import concurrent.futures
import logging
import math
import multiprocessing
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pebble

from offpolicy_rl.tasks import named

_LOG = logging.getLogger(__name__)
_STATM = pathlib.Path("/proc/self/statm")


class VerifierError(RuntimeError):
  """What went wrong in a worker, as text: its own exceptions need not survive the way back."""


class Judgement(NamedTuple):
  """What is known of one completion."""

  reward: float  # the verifier's verdict, 1.0 = right; 0.0 when it failed
  well_formed: bool  # the format's pattern was found in it; True without a pattern
  failed: bool  # the verifier crashed, ran out of time or memory, or returned no finite number


def verifier(function: Callable[[str, str], float]) -> Callable[[str, str], float]:
  """Marks a function as a verifier; no other can be named in task.verifier."""
  return named.mark(function, "verifier")


def resolve(name: str) -> Callable[[str, str], float]:
  """ "module:function" -> the function; ValueError when it can not be found or is no verifier."""
  decorator = "verifiers.verifier (offpolicy_rl.tasks.verifiers)"
  return named.resolve(name, "verifier", key="verifier", decorator=decorator)


_ALLOWED: dict[str, Callable[[str, str], float]] = {}  # filled once, when a worker starts


def allow(names: Sequence[str]) -> None:
  """Lets answer data name these verifiers in this process; ValueError as `resolve`."""
  _ALLOWED.update((name, resolve(name)) for name in names)


def allowed(name: str) -> Callable[[str, str], float]:
  """The verifier that answer data name; ValueError unless it was allowed.

  Answer data come over the wire: what they name is not imported.
  """
  if name not in _ALLOWED:
    raise ValueError(
      f"verifier: {name!r:.100}, expected one of the configured {', '.join(_ALLOWED) or '(none)'}"
    )
  return _ALLOWED[name]


def _prepare(names: Sequence[str], memory_mb: int) -> None:
  """Runs once in each worker: imports, then the limit, which is beyond what they took.

  Address space can be limited on Linux only; elsewhere there is no limit.
  """
  allow(names)
  if memory_mb and _STATM.exists():
    import resource  # not on every system

    taken = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    limit = taken + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _judge(
  name: str, completions: list[str], answer: str, pattern: str
) -> list[tuple[float, bool]]:
  """Runs in a worker: (reward, well formed) of each completion."""
  function = resolve(name)
  try:
    rewards = [_finite(function(completion, answer)) for completion in completions]
  except BaseException as error:  # SystemExit, too: it would end the sampler when raised there
    raise VerifierError(f"{type(error).__name__}: {error!s:.200}") from None
  formed = [re.search(pattern, completion, re.DOTALL) is not None for completion in completions]
  return list(zip(rewards, formed, strict=True))


def _finite(reward) -> float:
  if not isinstance(reward, int | float) or not math.isfinite(reward):
    raise TypeError(f"the verifier returned {reward!r:.60}, expected a finite number")
  return float(reward)


class Scorer:
  """A pool of verifier processes.

  A group is judged in one call. When that call crashes or exceeds a limit, its completions are
  judged again one by one, so that a single bad one costs only its own reward.
  """

  def __init__(
    self, verifier: str, *, workers: int, time_limit: float, memory_mb: int = 0,
    also: Sequence[str] = (), pattern: str = "",
  ):  # fmt: skip
    """Checks that all verifiers can be imported; ValueError names the one that can't.

    Args:
      time_limit: seconds for one call of a worker, importing the verifier not counted.
      memory_mb: address space that a worker may take beyond its imports; 0 = no limit.
      also: verifiers that `verifier` itself may call by `allowed`, imported before the limits hold.
      pattern: regular expression that well-formed completions match somewhere.
    """
    names = (verifier, *also)
    for name in names:  # a wrong one fails here, not in a worker
      resolve(name)
    self._verifier, self._pattern = verifier, pattern
    self._time_limit = time_limit
    # "spawn": forking a process that runs JAX threads can deadlock.
    context = multiprocessing.get_context("spawn")
    self._pool = pebble.ProcessPool(
      max_workers=workers, context=context, initializer=_prepare, initargs=(names, memory_mb)
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._pool.stop()
    self._pool.join()

  def submit(self, completions: list[str], answer: str):
    """Starts judging a group; hand the result to `judgements` or `rewards`."""
    return completions, answer, self._schedule(completions, answer)

  def rewards(self, submitted) -> tuple[list[float], int]:
    """(the verifier's reward per completion, number of failures); a failure is worth 0."""
    found = self.judgements(submitted)
    return [j.reward for j in found], sum(j.failed for j in found)

  def judgements(self, submitted) -> list[Judgement]:
    """Waits for a group's judgements, one per completion."""
    completions, answer, future = submitted
    try:
      return [Judgement(reward, formed, failed=False) for reward, formed in future.result()]
    except Exception:  # whatever the verifier raised, or its process's death
      return self._one_by_one(completions, answer)

  def _schedule(self, completions: list[str], answer: str):
    arguments = [self._verifier, completions, answer, self._pattern]
    return self._pool.schedule(_judge, args=arguments, timeout=self._time_limit)

  def _one_by_one(self, completions: list[str], answer: str) -> list[Judgement]:
    futures = [self._schedule([completion], answer) for completion in completions]
    concurrent.futures.wait(futures)
    found = []
    for completion, future in zip(completions, futures, strict=True):
      error = future.exception()
      if error is None:
        [(reward, formed)] = future.result()
        found.append(Judgement(reward, formed, failed=False))
      else:
        _LOG.warning("verifier failed (%s: %s) on %.80r", type(error).__name__, error, completion)
        found.append(Judgement(0.0, well_formed=False, failed=True))
    return found
