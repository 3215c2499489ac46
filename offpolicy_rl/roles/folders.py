"""Directories that are there whole or not at all."""

import contextlib
import errno
import fnmatch
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

from etils import epath

from offpolicy_rl.roles import resuming


def copy_matching(source, to: pathlib.Path, patterns: Iterable[str]) -> None:
  """Copies the files in `source`, local or in a bucket, that match one of the patterns.

  A pattern is of a file directly in it, or of one in a folder directly in it.
  """
  for pattern in patterns:
    # Not by epath's glob, which takes `[` in the directory's name for a pattern, too.
    folder, _, name = pattern.rpartition("/")
    there = epath.Path(source) / folder
    for path in there.iterdir() if there.is_dir() else ():
      if fnmatch.fnmatchcase(path.name, name) and not path.is_dir():
        (to / folder).mkdir(exist_ok=True)
        path.copy(to / folder / path.name)


def link(name: pathlib.Path, to: pathlib.Path, *, empty: bool) -> None:
  """Makes `name` a link to the directory `to`, which is made where it is not there.

  Raises:
    FileExistsError: `name` is something else already, or `to` is to be empty and is not.
  """
  to = to.resolve()
  to.mkdir(parents=True, exist_ok=True)
  if name.is_symlink() and name.resolve() == to:
    return
  if name.exists() or name.is_symlink():
    raise FileExistsError(f"{name}: is there already, expected no such name or a link to {to}")
  if empty and any(map(resuming.is_of_a_run, to.iterdir())):
    raise FileExistsError(f"{to}: holds files of another run, expected an empty directory")
  name.parent.mkdir(parents=True, exist_ok=True)
  name.symlink_to(to)


@contextlib.contextmanager
def whole(target: pathlib.Path):
  """A directory to fill, which becomes `target` at the end, or nothing when that fails.

  Raises:
    FileExistsError: something else has become `target` meanwhile; says where the directory is.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  half = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
  try:
    yield half
    half.chmod(0o777 & ~_umask())
    _move(half, target)
  except BaseException:
    shutil.rmtree(half, ignore_errors=True)
    raise


def _umask() -> int:
  """Of this process; it can be read by setting it only."""
  mask = os.umask(0o077)
  os.umask(mask)
  return mask


def _move(half: pathlib.Path, target: pathlib.Path) -> None:
  try:
    half.rename(target)  # also onto an empty directory
  except OSError as error:
    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
      raise
    kept = resuming.claim(target.parent, target.name)
    half.rename(kept)
    raise FileExistsError(f"{target}: came to be meanwhile; what was made is in {kept}") from None
