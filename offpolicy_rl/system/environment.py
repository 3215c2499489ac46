"""Variables of the environment that would change what a run computes, behind its configuration."""

import logging
import os

_LOG = logging.getLogger(__name__)

# JAX reads these when it is imported. Learner and samplers may be on machines that differ in them.
_CHANGING = (
  "JAX_ENABLE_X64",  # other dtypes than those of the cache and the wire
  "JAX_NUMPY_DTYPE_PROMOTION",
  "JAX_DEFAULT_PRNG_IMPL",  # other random numbers from the same seed
  "JAX_THREEFRY_PARTITIONABLE",
  "JAX_RANDOM_SEED_OFFSET",
)


def ignore_what_changes_results() -> None:
  """Removes them, and says so; before JAX is imported, and for processes to come, too."""
  for name in _CHANGING:
    value = os.environ.pop(name, None)
    if value is not None:
      _LOG.warning("%s=%s is ignored: results would depend on the machine", name, value)
