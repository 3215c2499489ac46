"""Updates of adapters: what moves, what does not, and what is kept in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offpolicy_rl import losses
from offpolicy_rl.learner import audit, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import lora, policy, sharding
from tests.learner.step_test import (
  OPTIMIZER,
  assert_same_update,
  choices,
  flat,
  loss_of_step,
  random_batch,
  stats_of,
)
from tests.model.decoder_test import CONFIG
from tests.model.lora_test import ADAPTED


def adapted(*arguments, **overrides) -> step.StepChoices:
  return dataclasses.replace(choices(*arguments, **overrides), model=ADAPTED)


def start(mesh, model=ADAPTED):
  """(state with adapters that are no longer fresh, base)."""
  base = state_lib.create_params(lora.base_config(model), mesh, seed=0)
  state = state_lib.create(model, mesh, OPTIMIZER, seed=1)
  stir = lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
  stirred = jax.tree.map(stir, state.params)
  return state._replace(params=stirred), base


def run(made, mesh, batch, model=ADAPTED):
  state, base = start(mesh, model)
  with jax.sharding.set_mesh(mesh):
    compiled = step.compile_step(made, state_lib.shardings(model, mesh, OPTIMIZER))
    return compiled(state, state_lib.place_batch(mesh, batch), base)


def test_one_step_is_the_gradient_of_the_adapters_through_adam():
  made, batch, mesh = adapted("beta_shift", kl_coef=0.3), random_batch(), sharding.make_mesh()
  state, base = start(mesh)

  def loss(adapters):
    part = jax.tree.map(lambda x: x[0], batch)
    found = made.token_stats(lora.join(base, adapters), part)
    frozen = choices().token_stats(base, part)
    inputs = losses.LossInputs(
      found.logprobs,
      *(flat(x) for x in (batch.sampler_logprobs, batch.loss_mask, batch.rewards, batch.group_ids)),
    )
    return made.objective(inputs._replace(reference_logprobs=frozen.logprobs))[0]

  @jax.jit
  def update(params):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)
    return value, gradient, optax.apply_updates(params, updates)

  value, gradient, expected = update(state.params)
  expected = policy.flatten(expected)
  new, metrics = run(made, mesh, batch)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(gradient), rtol=1e-4)
  found = policy.flatten(new.params)
  assert found.keys() == expected.keys() and all("_lora_" in name for name in found)
  for name, x in found.items():
    decided = np.abs(policy.flatten(gradient)[name]) > 1e-5
    np.testing.assert_allclose(x[decided], expected[name][decided], rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_eight_devices_and_micro_batches_give_the_same_update():
  made = adapted("beta_shift", kl_coef=0.3)
  one = run(made, sharding.make_mesh(), random_batch())
  eight = run(made, sharding.make_mesh(data=2, fsdp=2, tensor=2), random_batch(parts=2))
  assert len(eight[0].params["blocks"]["w_q_lora_a"].sharding.device_set) == 8
  assert_same_update(one, eight)


def test_fresh_adapters_are_at_their_reference():
  batch, mesh = random_batch(), sharding.make_mesh()
  state = state_lib.create(ADAPTED, mesh, OPTIMIZER, seed=1)
  base = state_lib.create_params(CONFIG, mesh, seed=0)
  loss = lambda made: float(loss_of_step(made)(state, batch, base))
  at_reference = loss(adapted(kl_coef=1.0))
  assert at_reference == pytest.approx(loss(adapted()), rel=1e-6)


def bytes_of(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def memory_of(made, mesh, model, batch, frozen, state):
  with jax.sharding.set_mesh(mesh):
    shardings = state_lib.shardings(model, mesh, OPTIMIZER)
    return (
      step.compile_step(made, shardings).lower(state, batch, frozen).compile().memory_analysis()
    )


@pytest.mark.long
def test_the_reference_is_the_base_and_there_is_one_of_it(monkeypatch):
  """What the compiled step is given and keeps: base once, adapters three times (Adam)."""
  monkeypatch.setattr(losses.Objective, "metrics", lambda *_: {})  # a third of what is compiled
  batch, mesh = random_batch(parts=4), sharding.make_mesh()
  wide = dataclasses.replace(ADAPTED, width=128, mlp_width=2048)
  state, base = start(mesh, wide)
  made = dataclasses.replace(adapted("beta_shift", kl_coef=0.3), model=wide)
  memory = memory_of(made, mesh, wide, batch, base, state)
  adapters = bytes_of(state.params)
  assert adapters < bytes_of(base) / 10
  given = bytes_of(base) + 3 * adapters + bytes_of(batch)
  assert memory.argument_size_in_bytes == pytest.approx(given, rel=0.01)
  assert memory.output_size_in_bytes < 3.1 * adapters + 10_000
  # No gradient of the base on the way, which training all weights has.
  every = state_lib.create(lora.base_config(wide), mesh, OPTIMIZER, seed=1)
  usual = memory_of(made.reference(), mesh, lora.base_config(wide), batch, base, every)
  assert usual.temp_size_in_bytes - memory.temp_size_in_bytes > 0.9 * bytes_of(base)


def test_the_audit_joins_the_kept_adapters_with_their_base():
  mesh, made, batch = sharding.make_mesh(), adapted(), random_batch()
  state, base = start(mesh)
  merged = lora.merge(ADAPTED, base, state.params)  # what a sampler computes with
  batch = batch._replace(sampler_logprobs=np.array(stats_of(merged, batch).logprobs)[None])
  check = audit.LogprobAudit(made, every=1, max_lag=3, frozen=base)
  found = check(0, state, {0}, batch)
  assert found["mismatch/max"] < 2e-5 and found["mismatch/tokens"] == batch.loss_mask.sum()
  other = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
  assert check(0, other, {0}, batch)["mismatch/max"] > 1e-2
