"""Runs Python programs that nobody has read, apart from everything else.

    outcome = programs.run("print(int(input()) + 1)", "41")
    outcome.stdout  # "42\\n"

By default with bubblewrap on this machine (bubblewrap.py). The variable OFFPOLICY_RL_SANDBOX of a
sampler's environment says where else: "pods:NAMESPACE/WARMPOOL" is a cluster's pods (pods.py).
"""

import contextlib
from collections.abc import Generator

from offpolicy_rl.sandbox import bubblewrap, pods
from offpolicy_rl.sandbox.outcomes import Limits, Outcome, Program, Run


def check() -> None:
  """Raises SandboxError unless programs can be run apart; tries it once in a process."""
  if pods.is_chosen():
    pods.check()
  else:
    bubblewrap.check()


def run(program: str | Program, stdin: str = "", limits: Limits = Limits()) -> Outcome:
  """Runs a program to its end.

  Raises:
    SandboxError: there is no sandbox.
  """
  program = Program(program) if isinstance(program, str) else program
  with together() as run_one:
    return run_one(program, stdin, limits)


@contextlib.contextmanager
def together() -> Generator[Run]:
  """Yields what runs a program, as `run` does; for several that may share a pod.

  Nothing passes from one to the next, but they come from one completion.
  """
  if not pods.is_chosen():
    yield bubblewrap.run
    return
  with pods.together() as run_one:
    yield run_one


def converse(asking: Program, answering: Program, limits: Limits = Limits()) -> Outcome:
  """Runs two programs, each of which reads what the other one prints, until the first ends.

  Returns:
    the outcome of the first, without stdout; the second is ended with it.

  Raises:
    SandboxError: there is no sandbox.
  """
  converse_there = pods.converse if pods.is_chosen() else bubblewrap.converse
  return converse_there(asking, answering, limits)
