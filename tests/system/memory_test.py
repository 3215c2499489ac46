"""Freed memory stays with a process, until it is too much."""

import ctypes
import subprocess
import sys

import pytest

# A small block between two large ones keeps the heap from shrinking from its end.
_PROGRAM = """
import numpy as np
from offpolicy_rl.system import memory

memory.keep_freed_memory()
before = memory._resident_bytes()
large = np.ones(400 << 20, np.uint8)
kept = [np.ones(4096, np.uint8) for _ in range(100)]
del large
print(memory._resident_bytes() - before)
share = (before + (200 << 20)) / memory.total_bytes()
memory.return_freed_memory(2.0)
print(memory._resident_bytes() - before)
memory.return_freed_memory(share)
print(memory._resident_bytes() - before)
"""


_HAS_GLIBC = hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not _HAS_GLIBC, reason="without glibc nothing is kept or returned")
def test_freed_memory_is_kept_and_returned_if_it_is_more_than_a_share_of_the_machine():
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60
  )
  assert not done.returncode, done.stderr
  kept, below, returned = (int(line) >> 20 for line in done.stdout.split())
  assert min(kept, below) >= 400 and returned < 20
