"""How many short programs does the sandbox run per second?

Command:  python -m benchmarks.sandbox
Prints, for Python alone, the sandbox, and the verifier's three forms of tests (one case each),
programs per second, and the CPU time of one, which a busy machine changes less. Writes no file.
"""

import argparse
import concurrent.futures
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.machine import machine
from offpolicy_rl.sandbox import programs
from offpolicy_rl.tasks import code

ADD = "def add(a, b): return a + b"
TESTS = {
  "inputs, outputs": (
    "print(sum(map(int, input().split())))",
    {"inputs": ["1 2"], "outputs": ["3"]},
  ),
  "fn_name": (ADD, {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}),
  "assertions": (ADD, ["assert add(1, 2) == 3"]),
}


def kinds() -> dict[str, Callable[[], object]]:
  """Name -> what is done once."""

  def judged(program: str, tests: str) -> None:
    if code.code(f"```python\n{program}\n```", tests) != 1.0:
      raise SystemExit("a right program was found wrong")

  bare = [sys.executable, "-S", "-E", "-c", "print(1)"]
  made = {name: (program, json.dumps(tests)) for name, (program, tests) in TESTS.items()}
  return {
    "Python alone": lambda: subprocess.run(bare, stdout=subprocess.DEVNULL, check=True),
    "sandbox": lambda: programs.run("print(1)"),
    **{f"verifier, {name}": lambda one=one: judged(*one) for name, one in made.items()},
  }


def cpu_seconds() -> float:
  """CPU time of this process and of those that it has started and that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(one.ru_utime + one.ru_stime for one in used)


def measure(action: Callable[[], object], seconds: float, threads: int) -> tuple[float, float]:
  """(calls per second by so many threads, CPU seconds of a call)."""
  end = time.monotonic() + seconds

  def repeat() -> int:
    count = 0
    while time.monotonic() < end:
      action()
      count += 1
    return count

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    begin, used = time.monotonic(), cpu_seconds()
    futures = [pool.submit(repeat) for _ in range(threads)]
    calls = sum(future.result() for future in futures)
    return calls / (time.monotonic() - begin), (cpu_seconds() - used) / calls


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
  parser.add_argument("--threads", type=int, default=2, help="programs at a time")
  flags = parser.parse_args()
  programs.check()
  print(f"{machine()}, {flags.threads} at a time: programs per second, CPU ms of one")
  for name, action in kinds().items():
    speed, cost = measure(action, flags.seconds, flags.threads)
    print(f"{name:<28}{speed:>8.0f}{1000 * cost:>8.1f}")


if __name__ == "__main__":
  main()
