"""Silence for libraries that write to the terminal when they are imported."""

import contextlib
import os
import tempfile
from collections.abc import Generator


@contextlib.contextmanager
def stderr_only_on_failure() -> Generator[None]:
  """Holds back what native code writes to file descriptor 2; shows it if the block raises."""
  with tempfile.TemporaryFile() as file:
    saved = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(saved, 2)
      file.seek(0)
      os.write(2, file.read())
      raise
    finally:
      os.dup2(saved, 2)
      os.close(saved)
