"""Tasks whose problems are seeds of one world, and whose questions are what it says first."""

import functools
import json
from collections.abc import Callable
from typing import Any

from offpolicy_rl.tasks import apart, sources, splits, verifiers


def task(
  settings: Any,
  environment: str,
  openings: Callable[[dict[str, Any], int], list[str]],
  world: dict[str, Any],
  check_package: Callable[[], None],
) -> splits.Task:
  """Makes the task `settings.name` of `settings.size` problems; a problem is a world with a seed.

  Args:
    settings: the section `task`.
    environment: "module:class".
    openings: (world, size) -> what it says first for each seed from 0 on; called in a process of
      its own. Raises TaskError if there is no such world.
    world: JSON; the same for all problems.
  """

  def check() -> None:
    check_package()
    apart.call(openings, world, 1)

  def problems() -> list[sources.Problem]:
    texts = apart.call(openings, world, settings.size)
    # Some worlds begin alike with every seed, but every question has to be another one.
    numbered = len(set(texts)) < len(texts)
    return [
      sources.Problem(
        f"{text}\n(Game {seed})" if numbered else text,
        json.dumps({"world": world, "seed": seed, "opening": splits.digest(text).hex()}),
      )
      for seed, text in enumerate(texts)
    ]

  return splits.Task(
    settings.name,
    functools.cache(problems),
    verifiers.NAMED["exact"],
    check=check,
    slow=True,
    environment=environment,
  )
