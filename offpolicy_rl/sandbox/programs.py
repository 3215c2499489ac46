"""Runs Python programs that nobody has read, apart from everything else.

    outcome = programs.run("print(int(input()) + 1)", "41")
    outcome.stdout  # "42\\n"

By default with bubblewrap on this machine (bubblewrap.py). The variable OFFPOLICY_RL_SANDBOX of a
sampler's environment says where else: "pods:NAMESPACE/WARMPOOL" is a cluster's pods (pods.py).
"""

import contextlib
import os
from collections.abc import Generator

from offpolicy_rl.sandbox import bubblewrap
from offpolicy_rl.sandbox.outcomes import WHERE, Limits, Outcome, Program, Run


def check() -> None:
  """Raises SandboxError unless programs can be run apart; tries it once in a process."""
  if not _elsewhere():
    return bubblewrap.check()
  from offpolicy_rl.sandbox import pods  # with gRPC, which nobody else here needs

  return pods.check()


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
  if not _elsewhere():
    yield bubblewrap.run
    return
  from offpolicy_rl.sandbox import pods

  with pods.together() as run_one:
    yield run_one


def converse(asking: Program, answering: Program, limits: Limits = Limits()) -> Outcome:
  """Runs two programs, each of which reads what the other one prints, until the first ends.

  Returns:
    the outcome of the first, without stdout; the second is ended with it.

  Raises:
    SandboxError: there is no sandbox.
  """
  if not _elsewhere():
    return bubblewrap.converse(asking, answering, limits)
  from offpolicy_rl.sandbox import pods

  return pods.converse(asking, answering, limits)


def _elsewhere() -> bool:
  """Whether this process's environment says that programs do not run on this machine."""
  return os.environ.get(WHERE, "") not in ("", "bubblewrap")
