"""Compiled programs, kept between processes by JAX's persistent cache, in the user's directory.

JAX's keys hold the program, jaxlib, XLA's flags and the processor with its features. They lack the
number of cores, by which XLA divides loops on CPU: it is a part of the directory's name.
"""

import contextlib
import importlib.metadata
import logging
import os
import pathlib
import re
import warnings
from typing import TextIO

_LOG = logging.getLogger(__name__)
_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_MAX_BYTES = 2 << 30
_PROBLEM = re.compile(r"Error \w+ persistent compilation cache entry for '(\w+)'")


def set_up(*, keep: bool) -> None:
  """Sets the environment of this process and its children. Call before JAX is imported.

  A directory that JAX_COMPILATION_CACHE_DIR names is used as it is. `keep`: False = no directory.
  """
  if not keep:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    return
  if not os.environ.get(_DIRECTORY):
    directory = user_directory("compiled")
    if directory is None:
      return
    os.environ[_DIRECTORY] = str(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  _remove_damaged(pathlib.Path(os.environ[_DIRECTORY]))


def user_directory(name: str) -> pathlib.Path | None:
  """A directory for this machine's programs, bounded in size; None if there can't be one."""
  try:
    # A relative path is invalid (XDG Base Directory Specification).
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else pathlib.Path.home() / ".cache"
    root = base / "offpolicy-rl" / name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    directory = root / f"jaxlib-{importlib.metadata.version('jaxlib')}-{cores}-cores"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():  # it holds code that we would run
      return None
    _shrink(root, _MAX_BYTES)
  except (OSError, RuntimeError) as error:  # no home, no rights
    _LOG.info("compiled programs are not kept: %s", error)
    return None
  return directory


def _shrink(root: pathlib.Path, max_bytes: int) -> None:
  """Deletes files, those unused for longest first, until the others are small enough.

  JAX could do so (jax_compilation_cache_max_size), but looks at all files for each that it writes,
  and locks the directory for each that it reads.
  """
  files = []
  for path in root.rglob("*"):
    with contextlib.suppress(OSError):  # another process has deleted it
      status = path.stat()
      if path.is_file():
        files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  total = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if total <= max_bytes:
      return
    with contextlib.suppress(OSError):
      path.unlink()
    total -= size


def _remove_damaged(directory: pathlib.Path) -> None:
  """Has files deleted that JAX warns about: it never replaces one.

  One that another process is writing, or was killed while writing, can't be read; a full disk
  leaves half of one. JAX compiles the program again.
  """
  show = warnings.showwarning

  def mend(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
  ) -> None:
    problem = _PROBLEM.match(str(message))
    if problem is None:
      show(message, category, filename, lineno, file, line)
      return
    _LOG.info("%s", message)
    for path in directory.glob(f"{problem[1]}-*-cache"):
      with contextlib.suppress(OSError):
        path.unlink()

  warnings.filterwarnings("always", _PROBLEM.pattern)  # the same text again, too
  warnings.showwarning = mend  # ty: ignore[invalid-assignment]
