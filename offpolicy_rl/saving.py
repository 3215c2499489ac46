"""Orbax's writers and readers, for one process or for several that write together."""

import jax
import orbax.checkpoint as ocp


def composite_writer(name: str) -> ocp.AsyncCheckpointer:
  """Writes several named trees in the background; `name`: as in `standard`."""
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**_handler(name)), **_together(name))


def standard(name: str) -> ocp.StandardCheckpointer:
  """Writes or reads one tree.

  `name`: processes wait for one another by it; two that are at work at a time need two names.
  """
  return ocp.StandardCheckpointer(**_together(name))


def _handler(name: str) -> dict:
  """For one process as Orbax has it."""
  if jax.process_count() == 1:
    return {}
  # Naming the processes makes them wait by the coordination service. Orbax's other way is a program
  # on the devices, which must not run beside a training step.
  return {
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
    )
  }


def _together(name: str) -> dict:
  if jax.process_count() == 1:
    return {}
  return {
    **_handler(name),
    "async_options": ocp.AsyncOptions(create_directories_asynchronously=False),
  }
