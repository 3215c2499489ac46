"""Runs a verifier in worker processes with a time limit; a bad answer can hang only its worker."""

import concurrent.futures
import importlib
import multiprocessing

import pebble


def resolve(verifier: str):
  """ "module:function" -> the function; ValueError when it can not be found."""
  module, _, name = verifier.partition(":")
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(f"verifier: {verifier!r}, expected an importable module:function") from error


def _judge(verifier: str, completions: list[str], answer: str) -> list[float]:
  """Runs in a worker."""
  function = resolve(verifier)
  return [float(function(completion, answer)) for completion in completions]


class Scorer:
  """A pool of verifier processes.

  A group is judged in one call. When that call crashes or exceeds the limit, its completions are
  judged again one by one, so that a single bad one costs only its own reward.
  """

  def __init__(self, verifier: str, *, workers: int, time_limit: float):
    """`time_limit`: seconds for one call of a worker, importing the verifier not counted."""
    resolve(verifier)  # a wrong name fails here, not in a worker
    self._verifier = verifier
    self._time_limit = time_limit
    # "spawn": forking a process that runs JAX threads can deadlock.
    context = multiprocessing.get_context("spawn")
    self._pool = pebble.ProcessPool(
      max_workers=workers, context=context, initializer=resolve, initargs=(verifier,)
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._pool.stop()
    self._pool.join()

  def submit(self, completions: list[str], answer: str):
    """Starts judging a group; hand the result to `rewards`."""
    return completions, answer, self._schedule(completions, answer)

  def rewards(self, submitted) -> tuple[list[float], int]:
    """(one reward per completion, number of verifier failures); a failure is worth 0."""
    completions, answer, future = submitted
    try:
      return future.result(), 0
    except Exception:  # whatever the verifier raised, or its process's death
      return self._one_by_one(completions, answer)

  def _schedule(self, completions: list[str], answer: str):
    arguments = [self._verifier, completions, answer]
    return self._pool.schedule(_judge, args=arguments, timeout=self._time_limit)

  def _one_by_one(self, completions: list[str], answer: str) -> tuple[list[float], int]:
    futures = [self._schedule([completion], answer) for completion in completions]
    concurrent.futures.wait(futures)
    failed = [future.exception() is not None for future in futures]
    rewards = [0.0 if bad else f.result()[0] for bad, f in zip(failed, futures, strict=True)]
    return rewards, sum(failed)
