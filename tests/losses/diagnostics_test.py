"""Alarms of an objective."""

import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import diagnostics


@pytest.mark.parametrize(
  ("mean", "alarm"),
  [(-0.3, 0.0), (0.15, 0.0), (0.3, 1.0)],  # standard error: 0.1
)
def test_memorising_is_more_than_the_noise_of_a_batch(mean, alarm):
  """On fresh samples the expected log-ratio is -KL, and every second batch's mean is above it."""
  noise = np.tile([-1.0, 1.0], 50)
  u = jnp.asarray(np.append(mean + noise, 1e3), jnp.float32)
  valid = jnp.arange(101) < 100
  values = diagnostics.log_ratio_metrics(u, valid)
  assert float(values["alarm/memorising"]) == alarm
  np.testing.assert_allclose(values["log_ratio/mean"], mean, rtol=1e-5)
