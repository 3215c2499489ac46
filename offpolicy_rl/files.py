"""Files and directories that are complete or absent, and Orbax's writers and readers.

JAX and Orbax are imported where they are used: reading a run's directory needs neither.
"""

import contextlib
import errno
import fnmatch
import hashlib
import itertools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from etils import epath

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

AnyPath = TypeVar("AnyPath", pathlib.Path, epath.Path)


def write_durably(path: pathlib.Path, text: str) -> None:
  """Replaces a file; after a crash it holds all of the old text or all of the new."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.rename(path)
  sync(path.parent)


def sha256(path: pathlib.Path) -> str:
  """Digest of a file's bytes, hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: pathlib.Path) -> None:
  """Makes a file or the names in a directory durable."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def make_unique(parent: pathlib.Path, name: str) -> pathlib.Path:
  """Creates the directory `name` in `parent`, or `name`-2, ..., if others have that name."""
  parent.mkdir(parents=True, exist_ok=True)
  for i in itertools.count(1):
    path = parent / (name if i == 1 else f"{name}-{i}")
    with contextlib.suppress(FileExistsError):
      path.mkdir()
      return path
  raise AssertionError


@contextlib.contextmanager
def new_directory(target: pathlib.Path) -> Generator[pathlib.Path]:
  """A directory to fill, which becomes `target` at the end, or is removed on an error.

  FileExistsError if something else has become `target` meanwhile; it says where the directory is.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
  try:
    yield partial
    mask = os.umask(0o077)  # can only be read by setting it
    os.umask(mask)
    partial.chmod(0o777 & ~mask)
    _rename(partial, target)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _rename(partial: pathlib.Path, target: pathlib.Path) -> None:
  try:
    partial.rename(target)  # also onto an empty directory
  except OSError as error:
    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
      raise
    kept = make_unique(target.parent, target.name)
    partial.rename(kept)
    raise FileExistsError(f"{target}: appeared meanwhile; the result is in {kept}") from None


def copy_matching(source: epath.PathLike, to: pathlib.Path, patterns: Iterable[str]) -> None:
  """Copies the files of a directory, local or in a bucket, that match one of the patterns.

  A pattern is FILE or FOLDER/FILE, with wildcards in FILE.
  """
  for pattern in patterns:
    # Not by epath's glob, which takes `[` in the directory's name for a pattern, too.
    folder, _, name = pattern.rpartition("/")
    directory = epath.Path(source) / folder
    for path in directory.iterdir() if directory.is_dir() else ():
      if fnmatch.fnmatchcase(path.name, name) and not path.is_dir():
        (to / folder).mkdir(exist_ok=True)
        path.copy(to / folder / path.name)


def orbax_composite(name: str) -> "ocp.AsyncCheckpointer":
  """Writes several named trees into one directory, in the background.

  Processes wait for one another by `name`: two writers at work at a time need two names.
  """
  import orbax.checkpoint as ocp

  options = _process_options(name)
  items = ocp.CompositeOptions(**options)
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(composite_options=items), **options)


def orbax_standard(name: str) -> "ocp.StandardCheckpointer":
  """Writes one tree in the background, or reads it; `name` as for `orbax_composite`."""
  import orbax.checkpoint as ocp

  return ocp.StandardCheckpointer(**_process_options(name))


def _process_options(name: str) -> dict:
  import jax
  import orbax.checkpoint as ocp

  if jax.process_count() == 1:
    return {}
  return {
    # With named processes they wait by the coordination service, else by a program on the devices,
    # which must not run beside a training step.
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
    ),
    "async_options": ocp.AsyncOptions(create_directories_asynchronously=False),
  }


def orbax_path(path: AnyPath) -> AnyPath:
  """A path without wildcards to a directory: its own, or that of a link to it.

  Orbax finds its files by etils' glob, which takes the whole path for the pattern: with "[b]" in
  it, a checkpoint is written that can't be read. The link's name follows from the path, as several
  processes must use the same one.

  Raises:
    OSError: something else has the link's name.
  """
  text = str(path)
  if "://" in text or not re.search(r"[*?\[]", text):
    return path
  pathlib.Path(text).mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
  link = pathlib.Path(tempfile.gettempdir()) / f"offpolicy-rl-{os.getuid()}-{digest}"
  with contextlib.suppress(FileExistsError):
    link.symlink_to(text)
  if link.lstat().st_uid != os.getuid() or os.readlink(link) != text:
    raise OSError(f"{link}: is in the way, expected a link of our own to {text}")
  return type(path)(link)
