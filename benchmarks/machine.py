"""The machine that something was measured on, and how fast it reads."""

import os
import pathlib
import platform
from collections.abc import Callable


def machine() -> str:
  """Processor and cores, for people."""
  model = next(
    (
      line.split(":")[1].strip()
      for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
      if line.startswith("model name")
    ),
    platform.machine(),
  )
  return f"{os.cpu_count()} cores of {model}"


def reading() -> tuple[Callable[[], object], int]:
  """(a function that adds up a large array on the first device, the array's bytes).

  An accelerator needs a larger one than a CPU before the time to begin no longer counts.
  """
  import jax
  import jax.numpy as jnp

  gibibytes = 0.25 if jax.default_backend() == "cpu" else 4
  large = jnp.ones(int(gibibytes * 2**28), jnp.float32)
  read = jax.jit(jnp.sum)
  return lambda: jax.block_until_ready(read(large)), large.nbytes
