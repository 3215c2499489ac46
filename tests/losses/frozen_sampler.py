"""Where an objective ends if the sampler never changes: one prompt, answers of one token, exactly.

  python -m tests.losses.frozen_sampler     the table of losses/README.md; half a minute

The batch has every answer as often as the sampler gives it, so nothing is noise, and the policy is
a table of logits. All answers are candidates of each sample. At a stationary point the coefficients
of the answers' log-probabilities are lambda pi: for regressions the lambda of induced_target.py,
for every other objective the same sum, -sum dL / d lp. A positive one pulls on everything that was
sampled, a negative one pushes it away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import losses

COUNTS = np.array([8, 4, 4, 2, 1, 1])  # of 20 samples: the sampler's probabilities
REWARDS = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
STEPS, RATE = 20_000, 0.3
# What is in the table: five known ones, then those that it is about.
KNOWN = ("beta_shift", "copg", "reinforce", "cispo", "grpo")
JUDGED = (
  *("gvpo", "max_rl", "vcpo", "vespo", "gepo", "kimi_k25"),
  *("dppo_tv", "dppo_kl", "mu_grpo", "bapo", "vaco", "m2po", "luspo"),
  *("score_centering", "score_centering_tis"),
)


class End(NamedTuple):
  """After STEPS steps of gradient descent on the logits."""

  right: float  # probability of a right answer; the sampler's is 0.35
  share: float  # of the likeliest right answer among the right ones; the sampler's is 0.57
  divergence: float  # KL(pi || mu), nats
  lam: float  # lambda, in units of the advantage
  still: bool  # whether the gradient is 0 there: the policy has arrived


def end(choices: losses.Choices) -> End:
  """Follows the gradient from the sampler's policy; computes in float64."""
  with jax.enable_x64(True):
    return _end(losses.objective(choices))


def _end(objective: losses.Objective) -> End:
  answer = np.repeat(np.arange(len(COUNTS)), COUNTS)
  mu = COUNTS / COUNTS.sum()
  every = lambda logprobs: jnp.broadcast_to(logprobs, (len(answer), 1, len(COUNTS)))
  x = losses.LossInputs(
    policy_logprobs=None,
    sampler_logprobs=jnp.log(mu[answer])[:, None],
    loss_mask=jnp.ones((len(answer), 1), bool),
    rewards=jnp.asarray(REWARDS[answer]),
    group_ids=jnp.zeros(len(answer), int),
    sampler_candidate_logprobs=every(jnp.log(mu)),
  )
  prepared = objective.prepare(x)

  def coefficients(logits):
    """dL / d lp of each answer."""

    def loss(lp):
      sampled = lp[answer][:, None]
      policy = {"policy_logprobs": sampled, "proximal_logprobs": sampled}
      return objective.loss(x._replace(**policy, candidate_logprobs=every(lp)), prepared)

    return jax.grad(loss)(jax.nn.log_softmax(logits))

  def gradient(logits):
    per_answer = coefficients(logits)
    return per_answer - jax.nn.softmax(logits) * jnp.sum(per_answer)

  def step(logits, _):
    return logits - RATE * gradient(logits), None

  logits, _ = jax.jit(lambda start: jax.lax.scan(step, start, length=STEPS))(jnp.log(mu))
  pi = np.asarray(jax.nn.softmax(logits))
  right = pi[REWARDS > 0]
  return End(
    right=float(right.sum()),
    share=float(right.max() / right.sum()),
    divergence=float(np.sum(pi * np.log(np.maximum(pi, 1e-300) / mu))),
    lam=float(-jnp.sum(coefficients(logits))),
    still=bool(np.abs(gradient(logits)).max() < 1e-6),
  )


def table() -> list[str]:
  """The rows of the page's table, without its head."""
  found = {n: end(losses.choose(n, max_tokens=1, group_size=20)) for n in (*KNOWN, *JUDGED)}
  rows = []
  for name, x in found.items():
    numbers = (x.right, x.share, x.divergence, x.lam)
    shown = " | ".join(f"{round(number, 2) + 0.0:.2f}" for number in numbers)
    rows.append(f"| `{name}` | {shown} | {'yes' if x.still else 'no'} |")
  return rows


if __name__ == "__main__":
  print("\n".join(table()))
