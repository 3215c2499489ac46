"""Orbax's writers and readers, for one process or for several that write together.

Processes wait for one another by names: two writers that are at work at a time need two of them.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile

import jax
import orbax.checkpoint as ocp


def composite(name: str) -> ocp.AsyncCheckpointer:
  """For several named trees in one directory; writes in the background."""
  together = _together(name)
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(**together)), **together
  )


def standard(name: str) -> ocp.StandardCheckpointer:
  """For one tree; writes in the background."""
  return ocp.StandardCheckpointer(**_together(name))


def plain(path):
  """A name of a directory (pathlib or epath) without wildcards: itself, or a link to it.

  Orbax looks for its files by etils' glob, which takes the whole path for the pattern: with "[b]"
  in it a checkpoint is written that can't be read. The link's name follows from the path, as
  several processes must use the same one.

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


def _together(name: str) -> dict:
  """Options of several processes; one does as Orbax has it."""
  if jax.process_count() == 1:
    return {}
  return {
    # Naming the processes makes them wait by the coordination service. Orbax's other way is a
    # program on the devices, which must not run beside a training step.
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
    ),
    "async_options": ocp.AsyncOptions(create_directories_asynchronously=False),
  }
