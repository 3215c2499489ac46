"""The update: against hand-made arithmetic, on a mesh, in micro-batches, and when it goes wrong."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offpolicy_rl import losses, types
from offpolicy_rl.learner import audit, loop, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import policy, sharding
from offpolicy_rl.replay import batching, packing
from tests.model.decoder_test import CONFIG
from tests.params import some

OPTIMIZER = state_lib.make_optimizer(learning_rate=1e-2, num_steps=10)


def choices(objective="beta_shift", **overrides) -> step.StepChoices:
  made = losses.objective(objective, group_size=4, **overrides)
  return step.StepChoices(CONFIG, made, OPTIMIZER, 0.9)


def random_batch(parts=1, room=0, seed=0) -> types.Batch:
  """Four groups of four, prompts of 3 tokens, completions of 1 to 6; `room`: more padding."""
  rng = np.random.default_rng(seed)
  completions, logprobs = [], []
  for b in range(16):
    stop = rng.integers(4, 10)
    tokens = rng.integers(0, CONFIG.vocab_size, stop)
    completions.append(packing.Completion(b // 4, tokens[:3], tokens[3:]))
    logprobs.append(-rng.exponential(3, stop - 3))
  limits = packing.Limits(packing.PADDED, 3, 6 + room, 9 + room)
  batch = batching._batch(completions, limits, parts)
  batch.sampler_logprobs[batch.loss_mask] = np.concatenate(logprobs)
  batch.versions[batch.loss_mask] = 0
  batch.rewards.reshape(-1)[:] = rng.integers(0, 2, 16)
  batch.verdicts[:] = batch.rewards
  return batch


def flat(x):
  """Of all parts."""
  return jnp.asarray(x).reshape(-1, *x.shape[2:])


@jax.jit
def stats_of(params, batch):
  """Of a batch of one part."""
  return choices().token_stats(params, jax.tree.map(lambda x: x[0], batch))


@functools.cache
def _first_state() -> state_lib.TrainState:
  created = state_lib.create(CONFIG, sharding.make_mesh(), OPTIMIZER, seed=0)
  return jax.tree.map(np.array, created)


def first_state(mesh) -> state_lib.TrainState:
  """A copy, as a step reuses the memory of its state; made by one program for all meshes."""
  return jax.device_put(_first_state(), state_lib.shardings(CONFIG, mesh, OPTIMIZER))


@functools.cache
def compiled_step(made: step.StepChoices, mesh):
  """Traced and compiled once, whoever uses it."""
  return step.compile_step(made, state_lib.shardings(CONFIG, mesh, OPTIMIZER))


def metric_of_step(made: step.StepChoices, name: str):
  """A step that only says this; compiled in a fraction of the time, as all else falls away."""
  return jax.jit(lambda *given: step.train_step(made, *given)[1][name])


def loss_of_step(made: step.StepChoices):
  return metric_of_step(made, "loss")


def run_once(made: step.StepChoices, mesh, batch, reference=None):
  with jax.sharding.set_mesh(mesh):
    placed = state_lib.place_batch(mesh, batch)
    return compiled_step(made, mesh)(first_state(mesh), placed, reference)


@pytest.mark.parametrize("objective", some(["copg"], ["decoupled_ppo"]))
def test_one_step_is_the_objectives_gradient_through_adam(objective):
  """The same update from its parts: jax.grad of the loss of the whole batch, clip, Adam."""
  made, batch = choices(objective), random_batch()
  params = policy.init(CONFIG, jax.random.key(0))

  def loss(p):
    logprobs = stats_of(p, batch).logprobs
    inputs = losses.LossInputs(
      logprobs,
      *(flat(x) for x in (batch.sampler_logprobs, batch.loss_mask, batch.rewards, batch.group_ids)),
    )
    # Sampled by the version that is updated: the log-linear proximal policy is the sampler's.
    inputs = inputs._replace(proximal_logprobs=inputs.sampler_logprobs)
    return made.objective(inputs)[0]

  @jax.jit
  def update(p):
    value, gradient = jax.value_and_grad(loss)(p)
    updates, opt_state = OPTIMIZER.update(gradient, OPTIMIZER.init(p), p)
    return value, gradient, optax.apply_updates(p, updates), opt_state

  value, gradient, expected, opt_state = jax.device_get(update(params))
  state, metrics = jax.device_get(run_once(made, sharding.make_mesh(), batch))
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(gradient), rtol=1e-5)
  assert int(state.step) == 1
  assert_same_parameters(state, state._replace(params=expected, opt_state=opt_state))


def assert_same_update(a, b):
  (state_a, metrics_a), (state_b, metrics_b) = jax.device_get((a, b))
  for key in metrics_a:
    np.testing.assert_allclose(metrics_a[key], metrics_b[key], rtol=1e-5, atol=1e-6, err_msg=key)
  assert_same_parameters(state_a, state_b)


def first_moments(state) -> dict:
  is_adam = lambda x: hasattr(x, "mu")
  adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s))
  return policy.flatten(adam.mu)


def assert_same_parameters(a, b):
  """After a first update, whatever processor rounds which way.

  The first moment is the clipped gradient times (1 - b1): compared directly, before Adam's division
  blows up the rounding of gradients that are almost zero. The parameters are compared where the
  gradient is far above that rounding.
  """
  moments = first_moments(b)
  for name, gradient in first_moments(a).items():
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(gradient, moments[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    decided = np.abs(gradient) > 1e-3 * scale
    assert decided.any()
    new, other = (policy.flatten(s.params)[name] for s in (a, b))
    np.testing.assert_allclose(new[decided], other[decided], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("objective", some(["copg"], ["dapo"]))
def test_microbatches_give_the_update_of_the_whole_batch(objective):
  """One that couples rows, and one whose mean is that of all tokens."""
  made, mesh = choices(objective), sharding.make_mesh()
  assert_same_update(
    run_once(made, mesh, random_batch()), run_once(made, mesh, random_batch(parts=4))
  )


@pytest.mark.long
def test_the_step_shrinks_with_the_effective_sample_size():
  """By sqrt(ESS / (16 * 0.5)), ESS = (sum W)^2 / sum W^2 of the completions' ratios W."""
  made, mesh, batch = choices("copg"), sharding.make_mesh(), random_batch()
  logprobs = np.asarray(stats_of(policy.init(CONFIG, jax.random.key(0)), batch).logprobs, float)
  w = np.exp(np.where(batch.loss_mask, logprobs - batch.sampler_logprobs, 0.0)[0].sum(-1))
  expected = np.sqrt(w.sum() ** 2 / (w**2).sum() / (16 * 0.5))
  assert 0.1 < expected < 0.9
  before = policy.flatten(first_state(mesh).params)
  whole, _ = run_once(made, mesh, batch)
  smaller, _ = run_once(dataclasses.replace(made, ess_target=0.5), mesh, batch)
  for name, gradient in first_moments(whole).items():
    decided = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
    full, part = (policy.flatten(s.params)[name] - before[name] for s in (whole, smaller))
    np.testing.assert_allclose(part[decided], expected * full[decided], rtol=1e-3, atol=1e-6)


# Rates at which the second update is far outside of the clip's band, so that its mask decides.
SEVERAL = state_lib.make_optimizer(learning_rate=3e-2, num_steps=10, max_grad_norm=1e6)


def test_several_updates_are_made_one_after_the_other_from_one_proximal_policy():
  """Two passes over two minibatches against a plain loop in which nothing is scanned.

  The gradient of the last update is what first and second moments of all four are made of, so
  moments are compared; the rounding of the first updates reaches them through the parameters.
  """
  made = dataclasses.replace(choices("tis"), optimizer=SEVERAL, minibatches=2, epochs=2)
  batch = random_batch(parts=4)
  begin, mesh = first_state(sharding.make_mesh()), sharding.make_mesh()
  state, metrics = jax.device_get(run_once(made, mesh, batch))
  whole = jax.jit(lambda p: jax.lax.map(lambda part: made.token_stats(p, part).logprobs, batch))
  before = whole(begin.params)

  def loss(params, minibatch, lq):
    rows = [jax.tree.map(lambda x, i=i: x[i], minibatch) for i in (0, 1)]
    logprobs = jnp.concatenate([made.token_stats(params, part).logprobs for part in rows])
    inputs = losses.LossInputs(
      logprobs,
      *(flat(x) for x in (minibatch.sampler_logprobs, minibatch.loss_mask, minibatch.rewards)),
      group_ids=flat(minibatch.group_ids),
      proximal_logprobs=flat(lq),
    )
    return made.objective(inputs)[0]

  gradient_of = jax.jit(jax.value_and_grad(loss))

  def run(proximal):
    params, opt_state, found = begin.params, begin.opt_state, []
    for rows in (slice(0, 2), slice(2, 4)) * 2:
      minibatch = jax.tree.map(lambda x, rows=rows: x[rows], batch)
      ids = minibatch.group_ids - minibatch.group_ids.min()
      value, gradient = gradient_of(
        params, minibatch._replace(group_ids=ids), proximal(params)[rows]
      )
      updates, opt_state = SEVERAL.update(gradient, opt_state, params)
      params = optax.apply_updates(params, updates)
      found.append((value, optax.global_norm(gradient)))
    return first_moments(begin._replace(opt_state=opt_state)), np.mean(found, axis=0)

  moments, means = run(lambda params: before)
  np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], means, rtol=1e-3)
  for name, moment in first_moments(state).items():
    np.testing.assert_allclose(moment, moments[name], atol=2e-3 * np.abs(moment).max())
  np.testing.assert_allclose(
    metrics["log_ratio/mean"],
    jnp.mean(jnp.sum(jnp.where(batch.loss_mask, before - batch.sampler_logprobs, 0), -1)),
    rtol=1e-4,
  )
  without, _ = run(whole)  # with the newest policy as the proximal one it is another update
  assert any(
    np.abs(moment - without[name]).max() > 0.05 * np.abs(moment).max()
    for name, moment in moments.items()
  )


@pytest.mark.long
def test_logits_in_chunks_give_the_same_update():
  batch, mesh = random_batch(), sharding.make_mesh()
  plain = choices("copg")
  in_chunks = dataclasses.replace(plain, logprob_chunk=3)
  assert_same_update(run_once(plain, mesh, batch), run_once(in_chunks, mesh, batch))


PINNED = {
  "loss": 4.23286,
  "grad_norm": 8.596196,
  "entropy": 2.864146,
  "lambda_hat": 0.428159,
  "log_ratio/mean": -3.28159,
  "log_ratio/max": 17.61791,
  "log_ratio/ess_fraction": 0.06250027,
  "reward": 0.625,
  "groups_without_signal": 0.5,
  "completion_tokens": 4.0,
}


def test_pinned_metrics_of_one_step():
  """A change here means that a step now computes something else. If that is wanted, say why in the
  commit and replace the numbers; they came from this test's own output."""
  _, metrics = run_once(choices(), sharding.make_mesh(), random_batch())
  assert {key: float(metrics[key]) for key in PINNED} == pytest.approx(PINNED, rel=1e-4)


def test_equal_verdicts_are_no_signal_whatever_their_mean_is_rounded_to():
  """Eight of 0.1 add up to more than 0.8 in float32."""
  shape, verdicts = (16, 2), np.repeat(np.float32([0.1, 0.3]), 8)
  nothing = np.zeros(shape, np.float32)
  batch = types.Batch(
    None,
    None,
    loss_mask=np.ones(shape, bool),
    sampler_logprobs=nothing,
    versions=np.zeros(shape, np.int32),
    rewards=verdicts,
    verdicts=verdicts,
    group_ids=np.repeat(np.arange(2), 8),
  )
  found = step._batch_metrics(batch, policy.TokenStats(nothing, nothing), 0)
  assert float(found["groups_without_signal"]) == 1.0


def same_prompts_batch(layout, shards=1, candidates=0) -> types.Batch:
  """Four groups of four that share their prompts, with so many candidates for each token."""
  rng = np.random.default_rng(5)
  prompts = rng.integers(0, CONFIG.vocab_size, (4, 3))
  draw = lambda: rng.integers(0, CONFIG.vocab_size, rng.integers(1, 7))
  completions = [packing.Completion(g, prompts[g], draw()) for g in np.repeat(np.arange(4), 4)]
  if candidates:
    likeliest = lambda tokens: rng.integers(0, CONFIG.vocab_size, (tokens.size, candidates))
    completions = [c._replace(candidates=likeliest(c.tokens)) for c in completions]
  columns = packing.row_columns(layout, 3, 6, 4) * (2 if layout == packing.PACKED else 1)
  batch = batching._batch(completions, packing.Limits(layout, 3, 6, columns, shards), parts=2)
  batch.sampler_logprobs[batch.loss_mask] = -rng.exponential(3, batch.loss_mask.sum())
  batch.versions[batch.loss_mask] = 0
  batch.rewards[:] = rng.integers(0, 2, batch.rewards.shape)
  if candidates:
    shape = (batch.loss_mask.sum(), candidates)
    batch.candidate_logprobs[batch.loss_mask] = -1.2 - rng.exponential(0.2, shape)
  return batch


@pytest.mark.parametrize(("layout", "sides"), some([("shared", 2)], [("packed", 1)]))
def test_devices_and_how_completions_are_laid_out_do_not_matter(layout, sides):
  """On one device or on eight."""
  made = dataclasses.replace(choices("grpo", kl_coef=0.1), shown=4)
  plain_batch, one = same_prompts_batch(packing.PADDED), sharding.make_mesh()
  reference = policy.init(CONFIG, jax.random.key(7))
  plain = run_once(made, one, plain_batch, reference)
  before = stats_of(policy.init(CONFIG, jax.random.key(0)), plain_batch).logprobs
  mesh = sharding.make_mesh(*[sides] * 3)
  other = run_once(
    made,
    mesh,
    same_prompts_batch(layout, shards=sides**2),
    jax.device_put(reference, policy.param_shardings(mesh, reference)),
  )
  assert len(other[0].params["blocks"]["w_q"].sharding.device_set) == sides**3
  for _, metrics in (plain, other):  # whole on every device, so that any process can read them
    assert metrics["policy_logprobs"].sharding.is_fully_replicated
    np.testing.assert_allclose(metrics["policy_logprobs"], before[:4], rtol=1e-4, atol=1e-5)
  assert int(plain[1].pop("tokens")) >= int(other[1].pop("tokens"))
  plain[1].pop("filled_fraction"), other[1].pop("filled_fraction")
  assert_same_update(plain, other)


@pytest.mark.long
@pytest.mark.parametrize(("layout", "sides"), [("packed", 1), ("shared", 2)])
def test_candidates_may_be_laid_out_and_split_in_any_way(layout, sides):
  made = choices("score_centering_tis")
  plain_batch = same_prompts_batch(packing.PADDED, candidates=3)
  plain = run_once(made, sharding.make_mesh(), plain_batch)
  mesh = sharding.make_mesh(*[sides] * 3)
  other = run_once(made, mesh, same_prompts_batch(layout, shards=sides**2, candidates=3))
  for name in ("tokens", "filled_fraction"):
    plain[1].pop(name), other[1].pop(name)
  assert_same_update(plain, other)
  fewer = plain_batch._replace(candidate_logprobs=plain_batch.candidate_logprobs - 1)
  without = run_once(made, sharding.make_mesh(), fewer)
  with pytest.raises(AssertionError):  # they do matter
    assert_same_update(plain, without)


def test_padding_does_not_matter():
  mesh = sharding.make_mesh()
  narrow, wide = (run_once(choices(), mesh, random_batch(room=room)) for room in (0, 4))
  assert narrow[1].pop("filled_fraction") > 1.3 * wide[1].pop("filled_fraction")
  assert_same_update(narrow, wide)


@pytest.mark.long
def test_moments_may_rest_in_the_hosts_memory():
  mesh, batch = sharding.make_mesh(2, 2, 1), random_batch()
  plain = run_once(choices(), mesh, batch)
  optimizer = state_lib.make_optimizer(learning_rate=1e-2, num_steps=10, in_host_memory=True)
  made = dataclasses.replace(choices(), optimizer=optimizer)
  state = state_lib.from_params(state_lib.create_params(CONFIG, mesh, seed=0), optimizer, mesh)
  kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}
  with jax.sharding.set_mesh(mesh):
    compiled = step.compile_step(made, state_lib.shardings(CONFIG, mesh, optimizer))
    state, metrics = compiled(state, state_lib.place_batch(mesh, batch), None)
  assert kinds(state.opt_state) == {"pinned_host"} and kinds(state.params) == {"device"}
  assert_same_update(plain, (state, metrics))


def test_a_policy_at_its_reference_pays_nothing_and_one_away_from_it_does():
  batch, state = random_batch(), first_state(sharding.make_mesh())
  plain = loss_of_step(choices())(state, batch, None)
  with_kl = loss_of_step(choices(kl_coef=1.0))
  at_reference = with_kl(state, batch, policy.init(CONFIG, jax.random.key(0)))
  away = with_kl(state, batch, policy.init(CONFIG, jax.random.key(7)))
  np.testing.assert_allclose(at_reference, plain, rtol=1e-5)
  assert away > plain + 0.1


def test_non_finite_steps_stop_with_step_and_group():
  batch = random_batch()
  group = lambda i: SimpleNamespace(
    ticket=SimpleNamespace(ticket_id=f"train/7/{i}"), group=SimpleNamespace(trajectories=range(4))
  )
  consumed = loop.StepBatch(batch, frozenset(), tuple(group(i) for i in range(4)))
  bad = {"loss": float("nan"), "grad_norm": 1.0, "first_nonfinite_row": 9}
  with pytest.raises(loop.NonFiniteError, match=r"step 7: loss nan.*row 9, group train/7/2"):
    loop.check_finite(7, bad, consumed)
  with pytest.raises(loop.NonFiniteError, match="every log-probability is finite"):
    loop.check_finite(
      7, {"loss": 1.0, "grad_norm": float("inf"), "first_nonfinite_row": -1}, consumed
    )
  loop.check_finite(7, {"loss": 1.0, "grad_norm": 1.0, "first_nonfinite_row": -1}, consumed)
  following = loop.StepBatch(batch, frozenset())  # a process that does not know the groups
  with pytest.raises(loop.NonFiniteError, match=r"first in row 9$"):
    loop.check_finite(7, bad, following)


def test_a_nan_in_the_policy_is_traced_to_its_first_row():
  state = first_state(sharding.make_mesh())
  batch = random_batch()
  for tokens in (batch.rows.tokens, batch.rows.targets):
    tokens[tokens == CONFIG.vocab_size - 1] = 0
  batch.rows.tokens[0, 6, 2] = CONFIG.vocab_size - 1
  params = dict(state.params, embedding=state.params["embedding"].at[-1].set(jnp.nan))
  untied = dataclasses.replace(CONFIG, tied_embeddings=False)
  params["unembedding"] = jnp.ones((CONFIG.width, CONFIG.vocab_size)) * 0.1
  made = dataclasses.replace(choices(), model=untied)
  fresh = state_lib.TrainState(jnp.int32(0), params, OPTIMIZER.init(params))
  assert int(metric_of_step(made, "first_nonfinite_row")(fresh, batch, None)) == 6


def test_the_audit_compares_the_version_that_sampled():
  """Sampled with version 0, consumed at step 2: the kept copy agrees, newer versions do not."""
  mesh, made = sharding.make_mesh(), choices()
  state = first_state(mesh)
  batch = random_batch()
  batch = batch._replace(sampler_logprobs=np.array(stats_of(state.params, batch).logprobs)[None])
  check = audit.LogprobAudit(made, every=10, max_lag=3)
  unrelated = batch._replace(versions=np.where(batch.loss_mask, -5, types.NO_VERSION))
  assert check(0, state, {-5}, unrelated) == {}
  with jax.sharding.set_mesh(mesh):
    for _ in range(2):
      state, _ = compiled_step(made, mesh)(state, state_lib.place_batch(mesh, batch), None)
  found = check(2, state, {0}, batch)
  assert found["mismatch/max"] < 1e-5 and found["mismatch/tokens"] == batch.loss_mask.sum()
  direct = step.logprob_mismatch(made, state.params, batch, 0)
  assert direct["mismatch/max"] > 1e-3
  odd = np.where(batch.loss_mask, np.arange(16)[:, None] % 2, types.NO_VERSION)
  of_half = step.logprob_mismatch(made, state.params, batch._replace(versions=odd), 0)
  assert of_half["mismatch/tokens"] == batch.loss_mask[:, ::2].sum()
  assert check(3, state, {0}, batch) == {}  # the copy was used up


@pytest.mark.long
def test_gradient_noise_is_that_of_the_groups_taken_one_by_one():
  mesh = sharding.make_mesh()
  batch = random_batch()
  made, params = choices("copg"), first_state(mesh).params
  norm = metric_of_step(made, "grad_norm")

  def group(g: int) -> types.Batch:
    rows = slice(4 * g, 4 * g + 4)
    part = jax.tree.map(lambda x: x[:, rows], batch)
    scored = batch.rows.sources.shape[-1]
    return part._replace(places=part.places - 4 * g * scored, group_ids=part.group_ids * 0)

  with jax.sharding.set_mesh(mesh):
    found = step.gradient_noise(made, params, batch, 0, num_groups=4)
    each = [float(norm(first_state(mesh), group(g), None)) ** 2 for g in range(4)]
    whole = float(norm(first_state(mesh), batch, None)) ** 2
  assert found["squared_norm"] == pytest.approx(whole, rel=1e-4)
  assert found["variance"] == pytest.approx((np.mean(each) - whole) * 4 / 3, rel=1e-3)
