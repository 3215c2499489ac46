"""How well the devices are used."""

from offpolicy_rl.learner.compilations import Compilations

# bfloat16 flops per second of one device, without sparsity, by what JAX calls its kind: from the
# vendors' data sheets (cloud.google.com/tpu/docs, nvidia.com).
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


class Speed:
  """What each step says about the speed of a learner on this mesh."""

  def __init__(self, mesh):
    devices = list(mesh.devices.flat)
    peak = PEAK_FLOPS.get(devices[0].device_kind)
    self._peak = peak and peak * len(devices)
    self._compilations = Compilations()

  def metrics(self, row: dict) -> dict[str, float]:
    """Of a step's row: flops_per_second, mfu where the device's peak is known, compilations.

    Model flops are counted as `model/cost.py` does; the time is that of the step alone.
    """
    rate = row["flops"] / row["seconds/step"]
    utilisation = {"mfu": rate / self._peak} if self._peak else {}
    return {"flops_per_second": rate, **utilisation, **self._compilations.taken()}

  def close(self) -> None:
    """Counts compilations no more."""
    self._compilations.close()
