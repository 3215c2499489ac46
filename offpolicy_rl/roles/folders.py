"""Directories that are there whole or not at all."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

from etils import epath


def copy_matching(source, to: pathlib.Path, patterns: Iterable[str]) -> None:
  """Copies the files directly in `source`, local or in a bucket, that match one of the patterns."""
  for pattern in patterns:
    for path in epath.Path(source).glob(pattern):
      path.copy(to / path.name)


@contextlib.contextmanager
def whole(target: pathlib.Path):
  """A directory to fill, which becomes `target` at the end, or nothing when that fails."""
  target.parent.mkdir(parents=True, exist_ok=True)
  half = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
  try:
    yield half
    half.chmod(0o755)
    half.rename(target)
  except BaseException:
    shutil.rmtree(half, ignore_errors=True)
    raise
