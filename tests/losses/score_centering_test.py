"""Score centering against the expectation over a whole vocabulary, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from tests.losses.objectives_test import arrays, build
from tests.losses.slow_reference import Batch, centring_coefficients, random_inputs

VOCABULARY, HEAD = 7, 3
WEIGHTS = [{}, {"weight": "truncate", "weight_high": 1.2}]


def policies(rest_alike: bool) -> tuple[np.ndarray, np.ndarray]:
  """(logits of the policy, probabilities of the sampler) [V], the sampler's likeliest first.

  rest_alike: outside of the head both share what is left in the same proportions.
  """
  rng = np.random.default_rng(0)
  q = np.sort(rng.dirichlet(np.ones(VOCABULARY)))[::-1]
  p = q * np.exp(0.6 * rng.normal(size=VOCABULARY))
  if rest_alike:
    p[HEAD:] = q[HEAD:] * 0.8
  return np.log(p / p.sum()), q


def slopes(logits: np.ndarray, q: np.ndarray, candidates: int, **weights) -> np.ndarray:
  """-d loss / d logits [V, V] of each token of the vocabulary, as if it had been sampled, A = 1."""

  def loss(logits, token):
    log_p, log_q = jax.nn.log_softmax(logits), jnp.log(q)
    one = lambda x: x[None, None]
    given = (log_p[token], log_q[token], log_p[:candidates], log_q[:candidates])
    return losses.score_centering(*map(one, given), jnp.ones(1), jnp.array([[True]]), **weights)[0]

  tokens = jnp.arange(VOCABULARY)
  return -np.asarray(jax.vmap(jax.grad(loss), (None, 0))(jnp.asarray(logits), tokens))


def weigh(ratio: np.ndarray, weight: str = "none", **bounds: float) -> np.ndarray:
  if weight == "none":
    return np.ones_like(ratio)
  return np.minimum(ratio, bounds["weight_high"])


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("candidates", [HEAD, VOCABULARY])
def test_the_scores_mean_under_the_sampler_is_taken_off(weights, candidates):
  """From the definition, a token of the vocabulary after the other; the tail adds no error here."""
  logits, q = policies(rest_alike=True)
  with jax.enable_x64(True):
    found = slopes(logits, q, candidates, **weights)
  p = np.exp(logits)
  w = weigh(p / q, **weights)
  scores = np.eye(VOCABULARY) - p  # of each token, with respect to the logits
  expected = w[:, None] * scores - (q * w) @ scores
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(q @ found, 0, atol=1e-12)
  assert np.abs(q @ (w[:, None] * scores)).max() > 0.02  # what would be left without


@pytest.mark.parametrize("weights", [{}, {"weight": "truncate", "weight_high": 0.5}], ids=str)
def test_more_candidates_leave_less_of_the_mean(weights):
  """Where the tails are not alike and truncated; with all tokens but one there is no error."""
  logits, q = policies(rest_alike=False)
  with jax.enable_x64(True):
    left = [np.abs(q @ slopes(logits, q, n, **weights)).max() for n in (1, 3, VOCABULARY - 1)]
  assert left[0] > left[1] > 1e-3 and left[2] < 1e-12


def test_an_example_by_hand():
  """q = .5, .3 and p = .4, .4 leave .2 each: rho = 1, so the coefficients are .1 and -.1."""
  one = lambda *x: jnp.log(jnp.array(x))[None, None]
  sampled, mask = jnp.log(jnp.array([[0.4]])), jnp.array([[True]])

  def loss(policy, likeliest):
    given = (policy, jnp.log(jnp.array([[0.5]])), likeliest, one(0.5, 0.3))
    return losses.score_centering(*given, jnp.array([2.0]), mask)[0]

  value, slope = jax.value_and_grad(loss, (0, 1))(sampled, one(0.4, 0.4))
  np.testing.assert_allclose(value, -2 * np.log(0.4), rtol=1e-6)
  np.testing.assert_allclose(slope[0], [[-2.0]])
  np.testing.assert_allclose(slope[1], [[[0.2, -0.2]]], rtol=1e-5)


@pytest.mark.parametrize("name", ["score_centering", "score_centering_tis"])
def test_gradients_of_candidates_match_slow_numpy(name):
  objective, x = build(name), random_inputs(0, drift=0.8)
  with jax.enable_x64(True):
    given = arrays(x)
    prepared = objective.prepare(given)
    loss = lambda likeliest: objective.loss(given._replace(candidate_logprobs=likeliest), prepared)
    found = jax.grad(loss)(given.candidate_logprobs)
    shares = np.asarray(prepared.row_weights * prepared.advantages)
  b = Batch(objective.choices, x, None)
  expected = np.zeros(found.shape)
  for n in b.rows:
    for t in b.tokens[n]:
      expected[n, t] = shares[n] * np.array(centring_coefficients(objective.choices, b, n, t))
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["score_centering", "score_centering_tis"])
@pytest.mark.parametrize("changed", ["candidate_logprobs", "sampler_candidate_logprobs"])
def test_extreme_candidates_leave_the_gradient_finite(name, changed):
  """Ruled out, all but ruled out, certain, and more than all together by a rounding error."""
  objective, x = build(name), random_inputs(0)
  extremes = np.array([[-np.inf, -1e4, 0.0], [0.0, -200.0, -90.0], [-1e-9, -17.0, -18.0]])
  value = getattr(x, changed).copy()
  value[[0, 5, 8], 0] = extremes
  given = arrays(x._replace(**{changed: value}))
  prepared = objective.prepare(given)
  loss = lambda likeliest: objective.loss(given._replace(candidate_logprobs=likeliest), prepared)
  found, slope = jax.value_and_grad(loss)(given.candidate_logprobs)
  assert np.isfinite(found) and np.isfinite(np.sum(np.square(slope)))


def test_a_weight_that_needs_the_sampled_token_is_refused():
  with pytest.raises(ValueError, match="objective.weight: got 'topr', expected one of none, trunc"):
    losses.choose("score_centering", weight="topr")
