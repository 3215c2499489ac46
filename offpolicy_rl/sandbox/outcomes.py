"""Programs, their limits, and how they end: what every sandbox takes and gives."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

WHERE = "OFFPOLICY_RL_SANDBOX"  # in a sampler's environment: where programs run


class SandboxError(ValueError):
  """Programs can't be run apart; says why, and what to install or to change."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of one program."""

  seconds: float = 10.0  # from its start to its end; Python itself takes 0.03
  cpu_seconds: float = math.inf  # of all its threads, rounded up; at most one more than `seconds`
  memory_mb: int = 512  # address space, MiB
  threads: int = 32
  output_bytes: int = 1 << 20  # of stdout, and of stderr

  @property
  def whole_cpu_seconds(self) -> int:
    """CPU seconds as the kernel counts them."""
    return math.ceil(min(self.cpu_seconds, self.seconds + 1))


class Outcome(NamedTuple):
  """The end of a program."""

  stdout: str  # the first `output_bytes`; what is no UTF-8 becomes U+FFFD
  stderr: str
  status: int  # 0 = it ended well, 128 + n = by signal n
  ended: str  # "exit" = by itself; else the limit: "seconds", "cpu", "threads", "output"


class Program(NamedTuple):
  """A program, and further files in its working directory that it can read."""

  text: str  # Python; main.py
  files: Mapping[str, str] = {}  # name -> text

  @property
  def all_files(self) -> dict[str, str]:
    """Name -> text."""
    return {"main.py": self.text, **self.files}


Run = Callable[[Program, str, Limits], Outcome]  # of a program with this stdin

# What every program finds in its environment. Hashes are seeded, so that a program prints sets in
# the same order every time.
ENVIRONMENT = {
  "HOME": "/",
  "LANG": "C.UTF-8",
  "MALLOC_ARENA_MAX": "2",  # else every thread takes 64 MB of address space
  "PYTHONHASHSEED": "0",
  "PYTHONUTF8": "1",
}
