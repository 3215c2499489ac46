"""Tasks of other packages, which list their problems in processes of their own."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from offpolicy_rl.tasks import apart, sources, splits, verifiers


def task[T](
  settings: Any,
  environment: str,
  read: Callable[[int], list[T]],
  problems: Callable[[Sequence[T]], list[sources.Problem]],
  check_package: Callable[[], None],
) -> splits.Task:
  """Makes the task `settings.name` of at most `settings.size` problems.

  Args:
    settings: the section `task`.
    environment: "module:class".
    read: number -> so many rows, the first of the package, or all there are; picklable, and called
      in a process of its own. Raises TaskError if there are none.
    problems: of rows.
  """

  def check() -> None:
    check_package()
    apart.call(read, 1)

  return splits.Task(
    settings.name,
    functools.cache(lambda: problems(apart.call(read, settings.size))),
    verifiers.NAMED["exact"],
    check=check,
    slow=True,
    environment=environment,
  )


def of_seeds(
  settings: Any,
  environment: str,
  openings: Callable[[dict[str, Any], int], list[str]],
  world: dict[str, Any],
  check_package: Callable[[], None],
) -> splits.Task:
  """A task whose problems are seeds of one world, and whose questions are what it says first.

  Args:
    openings: (world, size) -> what it says first for each seed from 0 on; as `read` of `task`.
    world: JSON; the same for all problems.
  """

  def problems(texts: Sequence[str]) -> list[sources.Problem]:
    # Some worlds begin alike with every seed, but every question has to be another one.
    numbered = len(set(texts)) < len(texts)
    return [
      sources.Problem(
        f"{text}\n(Game {seed})" if numbered else text,
        json.dumps({"world": world, "seed": seed, "opening": splits.digest(text).hex()}),
      )
      for seed, text in enumerate(texts)
    ]

  read = functools.partial(openings, world)
  return task(settings, environment, read, problems, check_package)
