"""Tasks as a user would bring them."""

from offpolicy_rl.tasks import catalog, sources, verifiers


@catalog.task
def letters() -> catalog.Task:
  """Say the letter again."""
  problems = lambda: [sources.Problem(x, f'"{x}"', x) for x in "abc"]
  return catalog.Task("letters", problems, verifiers.NAMED["exact"])


@catalog.task
def none() -> None:
  """Marked, but returns no task."""
