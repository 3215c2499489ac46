"""Whether this machine lets programs be run apart; tests that need it are skipped with a line."""

import os
import pathlib

import pytest

from offpolicy_rl.sandbox import bubblewrap, outcomes


def _why_not() -> str:
  try:
    bubblewrap.check()
  except outcomes.SandboxError as error:
    if "does not hold" in str(error):  # ours is broken: no reason to skip anything
      raise
    return str(error)
  return ""


WHY_NOT = _why_not()
needs_sandbox = pytest.mark.skipif(bool(WHY_NOT), reason=f"no sandbox here: {WHY_NOT:.200}")


def processes() -> set[int]:
  """Those of sandboxes that this process has started, and orphans of any sandbox."""
  commands, parents = {}, {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      commands[int(folder.name)] = (folder / "cmdline").read_bytes()
      parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended
      continue
  found = {pid for pid, command in commands.items() if b"/main.py" in command}

  def ancestors(pid: int) -> list[int]:
    above = []
    while (pid := parents.get(pid, 0)) > 1:
      above.append(pid)
    return above

  return {pid for pid in found if os.getpid() in ancestors(pid) or found >= set(ancestors(pid))}
