"""The machine's memory, and the C library's allocator."""

import ctypes
import os
import pathlib

# Names of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container
_OWN = pathlib.Path("/proc/self/statm")


def total_bytes() -> int:
  """Memory that this process may have: the machine's, or its container's if that is less."""
  machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  limit = _LIMIT.read_text(encoding="utf-8").strip() if _LIMIT.is_file() else ""
  return min(machine, int(limit)) if limit.isdigit() else machine


def keep_freed_memory() -> None:
  """Has glibc keep freed memory for the next step or message. Call before threads start.

  By default large blocks return to the kernel, which must find and clear pages for the next one.
  That took as long as sending a message, and a quarter of a training step on CPU. There is one
  arena, as the others can't hold blocks above 64 MB. Does nothing without glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


def return_freed_memory(share: float = 0.5) -> None:
  """Has glibc give freed memory back if this process has more than this share of `total_bytes`.

  Small blocks between large ones leave gaps that no large block fits into, so without this an
  update that needs 10 GB took 20. Does nothing without glibc.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None and _resident_bytes() > share * total_bytes():
    trim(0)


def _resident_bytes() -> int:
  """Memory that this process has."""
  return int(_OWN.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
