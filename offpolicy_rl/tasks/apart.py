"""Calls in a process of their own: what they import and set stays out of this one."""

from collections.abc import Callable

from offpolicy_rl.tasks import pool
from offpolicy_rl.tasks.rows import TaskError

_SECONDS = 600.0  # to list the problems of another package; imports don't count


def call[T](function: Callable[..., T], *arguments: object) -> T:
  """The function's result; both have to be picklable.

  Raises:
    TaskError: it raised that, or did not return.
  """
  worker = pool.Worker(_nothing, _SECONDS, 0)
  try:
    answer, _ = worker.attempt(_result, (function, *arguments))
  finally:
    worker.close()
  if isinstance(answer, pool.Failed):
    raise TaskError(answer.reason)
  if isinstance(answer, TaskError):
    raise answer
  return answer


def _nothing() -> None:
  pass


def _result(function: Callable, *arguments: object) -> object:
  try:
    return function(*arguments)
  except TaskError as error:  # in full; a worker shortens what is raised
    return TaskError(str(error))
