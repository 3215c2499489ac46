"""Environment variables that would change the results of a run besides its configuration."""

import logging
import os

_LOG = logging.getLogger(__name__)

# Read by JAX when imported. The machines of learner and samplers may differ in them.
_CHANGING = (
  "JAX_ENABLE_X64",  # other dtypes than those of the cache and the wire
  "JAX_NUMPY_DTYPE_PROMOTION",
  "JAX_DEFAULT_PRNG_IMPL",  # other random numbers from the same seed
  "JAX_THREEFRY_PARTITIONABLE",
  "JAX_RANDOM_SEED_OFFSET",
)


def ignore_what_changes_results() -> None:
  """Removes them with a warning, for child processes, too. Call before JAX is imported."""
  for name in _CHANGING:
    value = os.environ.pop(name, None)
    if value is not None:
      _LOG.warning("%s=%s is ignored: results would depend on the machine", name, value)
