"""Orbax's writers and readers, for one process or for several that write together.

Processes wait for one another by names: two writers that are at work at a time need two of them.
"""

import jax
import orbax.checkpoint as ocp


def composite(name: str) -> ocp.AsyncCheckpointer:
  """For several named trees in one directory; writes in the background."""
  together = _together(name)
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(**together)),
    **together,
  )


def standard(name: str) -> ocp.StandardCheckpointer:
  """For one tree; writes in the background."""
  return ocp.StandardCheckpointer(**_together(name))


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
