"""A teacher judges the policy's tokens, and the policy becomes it, under lag."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import teacher
from offpolicy_rl.model import policy, sharding
from offpolicy_rl.replay import batching, packing
from tests.learner.step_test import (
  choices,
  compiled_step,
  first_state,
  metric_of_step,
  same_prompts_batch,
)
from tests.model.decoder_test import CONFIG
from tests.params import some

# Another architecture.
MODEL = dataclasses.replace(CONFIG, num_layers=1, width=16, mlp_width=32, tied_embeddings=False)
PROMPTS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 3))
COMPLETIONS, LAG = 64, 3  # per prompt and step; versions


@functools.cache
def weights() -> dict:
  return jax.tree.map(np.array, policy.init(MODEL, jax.random.key(5)))


def judge(objective: str, mesh) -> teacher.Teacher:
  params = jax.device_put(weights(), policy.param_shardings(mesh, weights()))
  made = dataclasses.replace(choices(objective), model=MODEL)
  return teacher.Teacher(made, params, mesh)


def log_probabilities(model, params, tokens) -> jax.Array:
  """[B, T, V] of the next token, at the temperature of step_test.choices."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return jax.nn.log_softmax(policy.apply(model, params, tokens, positions)[0] / 0.9)


@pytest.mark.parametrize(
  ("layout", "sides", "candidates"), some([("padded", 1, 2), ("shared", 2, 0)], [("packed", 2, 0)])
)
def test_a_teacher_reads_what_the_policy_wrote_however_it_is_laid_out(layout, sides, candidates):
  """On one device or on eight."""
  mesh = sharding.make_mesh(*[sides] * 3)
  batch = same_prompts_batch(layout, shards=sides**2, candidates=candidates)
  with jax.sharding.set_mesh(mesh):
    placed = state_lib.place_batch(mesh, batch)
    judged = judge("distill", mesh)(placed)
  assert judged._replace(teacher_logprobs=None) == placed
  plain = same_prompts_batch("padded", candidates=candidates)
  rows = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), plain)
  found = np.asarray(judged.teacher_logprobs).reshape(rows.loss_mask.shape)
  log_p = np.asarray(log_probabilities(MODEL, weights(), rows.rows.tokens))
  for n, mask in enumerate(rows.loss_mask):
    start = PROMPTS.shape[1] - 1
    expected = [log_p[n, start + m, rows.rows.tokens[n, start + m + 1]] for m in range(mask.sum())]
    np.testing.assert_allclose(found[n][mask], expected, rtol=1e-4, atol=1e-5)
    assert not found[n][~mask].any()


@jax.jit
def sampled(params, key) -> tuple[jax.Array, jax.Array]:
  """(tokens, log-probabilities) [completions of both prompts, 2] of a policy."""
  rows, logprobs = jnp.repeat(PROMPTS, COMPLETIONS, 0), []
  for k in jax.random.split(key, 2):
    log_p = log_probabilities(CONFIG, params, rows)[:, -1]
    drawn = jax.random.categorical(k, log_p)[:, None]
    logprobs.append(jnp.take_along_axis(log_p, drawn, 1))
    rows = jnp.concatenate([rows, drawn], 1)
  return rows[:, -2:], jnp.concatenate(logprobs, 1)


def batch_of(tokens, logprobs, version: int) -> types.Batch:
  prompts = np.repeat(np.arange(len(PROMPTS)), COMPLETIONS)
  completions = [
    packing.Completion(p, PROMPTS[p], one) for p, one in zip(prompts, tokens, strict=True)
  ]
  batch = batching._batch(completions, packing.Limits(packing.PADDED, 3, 2, 5), 1)
  batch.sampler_logprobs[batch.loss_mask] = np.asarray(logprobs).ravel()
  batch.versions[batch.loss_mask] = version
  batch.rewards[:] = np.random.default_rng(version).integers(0, 2, batch.rewards.shape)
  return batch


@jax.jit
def distance(params) -> jax.Array:
  """KL(policy || teacher) of the first token, exactly; mean over the prompts."""
  log_p = log_probabilities(CONFIG, params, PROMPTS)[:, -1]
  log_t = log_probabilities(MODEL, weights(), PROMPTS)[:, -1]
  return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_t), -1))


@pytest.mark.parametrize(
  ("objective", "steps"), some([("distill", 40)], [("distill_regression", 120)])
)
def test_a_policy_becomes_its_teacher_from_what_older_versions_wrote(objective, steps):
  mesh = sharding.make_mesh()
  state, update = first_state(mesh), compiled_step(choices(objective), mesh)
  before, waiting, said = float(distance(state.params)), collections.deque(), []
  with jax.sharding.set_mesh(mesh):
    judged = judge(objective, mesh)
    for at in range(steps):
      waiting.append((*sampled(state.params, jax.random.key(at)), at))
      batch = state_lib.place_batch(mesh, batch_of(*waiting[0]))
      if len(waiting) > LAG:
        waiting.popleft()
      state, metrics = update(state, judged(batch), None)
      said.append(float(metrics["teacher/kl"]))
  assert distance(state.params) < 0.1 * before
  assert said[-1] < 0.2 * said[0]


def test_the_distance_of_the_sampler_is_logged_whatever_the_objective():
  batch, mesh = same_prompts_batch("padded"), sharding.make_mesh()
  with jax.sharding.set_mesh(mesh):
    judged = judge("grpo", mesh)(state_lib.place_batch(mesh, batch))
    found = metric_of_step(choices("grpo"), "teacher/kl")(first_state(mesh), judged, None)
  gaps = (batch.sampler_logprobs - np.asarray(judged.teacher_logprobs))[batch.loss_mask]
  np.testing.assert_allclose(found, gaps.mean(), rtol=1e-4)
