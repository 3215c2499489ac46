"""The C library's ways with memory, where they matter to messages of a megabyte."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h: M_TRIM_..., M_MMAP_...


def keep_freed_blocks() -> None:
  """Has glibc keep freed blocks of up to 32 MB for the next message.

  By default it returns them to the kernel, and every message is written to pages that the kernel
  must find and clear first: that took as long as sending it. glibc comes to the same settings by
  itself once a process has freed a block of 32 MB. Does nothing where there is no glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, 64 << 20)
