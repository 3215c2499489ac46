"""A learner's speed: seconds per part of a step, flops, compilations."""

import contextlib
import functools
import time
from collections.abc import Generator, Sequence

import jax.monitoring

from offpolicy_rl.learner import step
from offpolicy_rl.model import cost, decoder
from offpolicy_rl.replay import packing

# JAX's device_kind -> dense bfloat16 flops per second of one device, from the vendors' data sheets
# (cloud.google.com/tpu/docs, nvidia.com).
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}
_COMPILED = "/jax/core/compile/backend_compile_duration"


def step_flops(
  choices: step.StepChoices,
  teacher: decoder.DecoderConfig | None,
  lengths: Sequence[tuple[int, Sequence[int]]],
  *,
  layout: str,
) -> int:
  """Flops of a step by `model/cost.py`, and of the teacher's pass over the batch.

  Checks of the learner/ (audit.py, poison.py) are not among them.

  Args:
    teacher: None = there is none.
    lengths: (prompt tokens, tokens of each completion) of every group.
  """
  work = functools.partial(cost.work, groups=lengths, shared=layout == packing.SHARED)
  judging = cost.forward_flops(teacher, work(teacher)) if teacher else 0
  return choices.flops(work(choices.model)) + judging


class Timer:
  """Measures the parts of a step: `with timer("seconds/waiting"): ...` sets `seconds`."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Generator[None]:
    """Sets `seconds[name]` to the duration of the block."""
    started = time.perf_counter()
    yield
    self.seconds[name] = time.perf_counter() - started


class Speed:
  """Flops and compilations of each step on a mesh.

  Counts compilations of all threads from construction to `close`.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    devices = list(mesh.devices.flat)
    peak = PEAK_FLOPS.get(devices[0].device_kind)
    self._peak = peak and peak * len(devices)
    self._number, self._seconds = 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._count)

  def _count(self, event: str, duration_secs: float, **_) -> None:
    if event == _COMPILED:
      self._number += 1
      self._seconds += duration_secs

  def metrics(self, row: dict) -> dict[str, float]:
    """Computes flops_per_second, mfu (if the device's peak is known) and `compilations`.

    Args:
      row: metrics of a step, with "flops" (see `step_flops`) and "seconds/step".
    """
    rate = row["flops"] / row["seconds/step"]
    utilisation = {"mfu": rate / self._peak} if self._peak else {}
    return {"flops_per_second": rate, **utilisation, **self.compilations()}

  def compilations(self) -> dict[str, float]:
    """Returns compilations and seconds/compiling since the last call."""
    counts = {"compilations": self._number, "seconds/compiling": self._seconds}
    self._number, self._seconds = 0, 0.0
    return counts

  def close(self) -> None:
    """Stops counting compilations."""
    jax.monitoring.unregister_event_duration_listener(self._count)
