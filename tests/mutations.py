"""Faults of one line, and the test that has to turn red for each: whether the suite tests anything.

Commands:
  .venv/bin/python -m tests.mutations                  # every fault; 10 to 20 minutes of one core
  .venv/bin/python -m tests.mutations rope lag_bound   # some of them

Each fault is put into a copy of the working tree, where the test named beside it runs. The exit
code is 1 when one of them survives. Without faults all tests must be green: run `make test` first.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.faults import FAULTS

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE, TESTS = "offpolicy_rl/", "tests/"
_SECONDS = 600  # for the tests of one fault
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class FaultError(ValueError):
  """A fault that can't be put in: the code has changed; names the fault."""


def mutated(name: str, root: pathlib.Path = ROOT) -> tuple[pathlib.Path, str]:
  """(file, its text with the fault)."""
  fault = FAULTS[name]
  file = root / PACKAGE / fault.file
  text = file.read_text() if file.exists() else ""
  if (count := text.count(fault.old)) != 1:
    raise FaultError(
      f"{name}: {PACKAGE}{fault.file} has {fault.old!r} {count} times, expected once; change the "
      "fault in tests/mutations.py as the code has changed"
    )
  return file, text.replace(fault.old, fault.new)


def copy_tree(to: pathlib.Path) -> None:
  """Copies the files that git knows, as they are now, and the generated wire code."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  ).stdout.split("\0")
  made = [str(p.relative_to(ROOT)) for p in (ROOT / PACKAGE).rglob("*_pb2*")]
  for name in filter(None, (*listed, *made)):
    if (ROOT / name).is_file():
      (to / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, to / name)


def red(root: pathlib.Path, test: str) -> str | None:
  """The test that fails in the tree `root`, with its parameters; None when all pass.

  Raises:
    FaultError: they can't be run.
  """
  arguments = [sys.executable, "-m", "pytest", "-n0", "-x", "-rfE", "-p", "no:cacheprovider"]
  environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
  try:
    done = subprocess.run(
      [*arguments, test],
      cwd=root,
      env=environment,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return f"no end within {_SECONDS} s"
  if done.returncode == 0:
    return None
  failed = _FAILED.search(done.stdout)
  if done.returncode != 1 or not failed:
    raise FaultError(f"{test}: pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
  return failed[1]


def run(names: Sequence[str]) -> bool:
  """Prints what turns red for each fault; returns whether every fault was noticed."""
  with tempfile.TemporaryDirectory(prefix="offpolicy-rl-mutations-") as folder:
    root = pathlib.Path(folder)
    copy_tree(root)
    survived = []
    for name in names:
      begin = time.monotonic()
      file, text = mutated(name, root)
      right = file.read_text()
      file.write_text(text)
      found = red(root, TESTS + FAULTS[name].test)
      file.write_text(right)
      survived += [name] * (found is None)
      print(f"{name:28} {time.monotonic() - begin:5.0f} s  {found or 'SURVIVED'}", flush=True)
  print(f"{len(names)} faults, {len(survived)} survived: {', '.join(survived) or 'none'}")
  return not survived


if __name__ == "__main__":
  chosen = sys.argv[1:] or list(FAULTS)
  if unknown := set(chosen) - FAULTS.keys():
    sys.exit(f"got {', '.join(sorted(unknown))}, expected some of: {', '.join(FAULTS)}")
  sys.exit(0 if run(chosen) else 1)
