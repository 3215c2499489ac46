"""Where objectives end with a frozen sampler: the induced target, and the table of the page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import induced_target
from tests.conftest import ROOT
from tests.losses import frozen_sampler
from tests.losses.frozen_sampler import COUNTS, REWARDS


@pytest.mark.long
@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_a_regression_ends_at_its_induced_target(kappa):
  choices = losses.choose("beta_shift", kappa=kappa)
  found = frozen_sampler.end(choices)
  with jax.enable_x64(True):
    mu = COUNTS / COUNTS.sum()
    advantages = REWARDS - mu @ REWARDS + kappa * choices.beta
    target = induced_target.solve(jnp.asarray(advantages), choices.beta, jnp.asarray(mu))
    divergence = induced_target.reverse_kl(target.log_ratios, jnp.asarray(mu))
  assert found.still
  np.testing.assert_allclose([found.lam, found.divergence], [target.lam, divergence], rtol=1e-6)


def cells(row: str) -> list[str]:
  return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.long
def test_the_table_of_the_page_is_measured():
  text = (ROOT / "offpolicy_rl/losses/README.md").read_text()
  _, _, rest = text.partition("<!-- frozen sampler -->\n")
  listed = rest.partition("<!-- end of frozen sampler -->")[0].splitlines()[2:]
  made = frozen_sampler.table()
  assert [cells(row)[::5] for row in listed] == [cells(row)[::5] for row in made]  # name, still
  values = [np.array([cells(row)[1:5] for row in rows], float) for rows in (listed, made)]
  np.testing.assert_allclose(*values, atol=0.02)
