"""Does the normalisation of the advantage move the regime as predicted?

Command:  python -m benchmarks.regimes
A sampler with 32 answers, of which 4, 16 or 28 are right; groups of 8; a softmax policy over the
answers trained on fresh groups with the library's objectives. For each baseline: lambda predicted
from the effective advantage at that group size (losses/group_regime.py and the Lambert solution),
against lambda_hat = mean(A - beta u) as measured in training, at the first step and at the end
(mean over the last fifth of the steps, 4 seeds). Writes results/regimes.json and prints a table.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.demo_seeds import machine
from offpolicy_rl import losses
from offpolicy_rl.losses import group_regime, induced_target

RESULTS = pathlib.Path(__file__).parent / "results"
ARMS, GROUP_SIZE, GROUPS, STEPS, SEEDS = 32, 8, 64, 4000, 4
RIGHT = (4, 16, 28)
BETA = 0.2
# label -> choices of losses.objective("beta_shift", ...)
BASELINES = {
  "mean": {"kappa": 0.0},
  "mean + shift, kappa 1": {"kappa": 1.0},
  "mean + shift, kappa -1": {"kappa": -1.0},
  "leave-one-out mean": {"advantage": "loo", "kappa": 0.0},
  "std": {"advantage": "std", "kappa": 0.0},
  "V-hat, beta1 = 5 beta (OAPL)": {"advantage": "vhat", "beta1": 5 * BETA, "kappa": 0.0},
  "V-hat, beta1 = beta": {"advantage": "vhat", "beta1": BETA, "kappa": 0.0},
  "V-hat of the others, beta1 = beta": {"advantage": "vhat_loo", "beta1": BETA, "kappa": 0.0},
}


def train(objective: losses.Objective, right: jax.Array, key: jax.Array) -> jax.Array:
  """lambda_hat of every step [STEPS]; the first `right` arms have reward 1."""
  rows = GROUPS * GROUP_SIZE
  group_ids = jnp.arange(rows) // GROUP_SIZE
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, STEPS, alpha=0.01))
  sampler = jnp.full((rows, 1), -jnp.log(float(ARMS)))

  def step(carry, step_key):
    logits, state = carry
    arms = jax.random.randint(step_key, (rows,), 0, ARMS)

    def inputs_of(logits):
      policy = jax.nn.log_softmax(logits)[arms][:, None]
      rewards = (arms < right).astype(jnp.float32)
      mask = jnp.ones((rows, 1), bool)
      return losses.LossInputs(policy, sampler, mask, rewards, group_ids)

    found, gradient = jax.value_and_grad(lambda z: objective(inputs_of(z)), has_aux=True)(logits)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(logits, updates), state), found[1]["lambda_hat"]

  start = jnp.zeros(ARMS)
  keys = jax.random.split(key, STEPS)
  return jax.lax.scan(step, (start, optimizer.init(start)), keys)[1]


def predict(choices: losses.Choices, p: float) -> tuple[float, float, float]:
  """(lambda at the first step, regime statistic, lambda at the fixed point)."""
  given = {"beta": choices.beta, "beta1": choices.beta1, "kappa": choices.kappa}
  failure, success = group_regime.effective_advantage(choices.advantage, p, GROUP_SIZE, **given)
  # The arms one by one: a negative regime singles out one of them.
  right = round(p * ARMS)
  table = jnp.array([success] * right + [failure] * (ARMS - right))
  target = induced_target.solve(table, choices.beta)
  first = (1 - p) * failure + p * success  # E A_eff: where training starts, pi = mu
  return first, float(target.regime_statistic), float(target.lam)


def compare(label: str, overrides: dict) -> list[dict]:
  """One row per share of right answers."""
  objective = losses.objective("beta_shift", beta=BETA, **overrides)
  run = jax.jit(jax.vmap(jax.vmap(lambda r, k: train(objective, r, k), (None, 0)), (0, None)))
  keys = jax.random.split(jax.random.key(0), SEEDS)
  measured = np.asarray(run(jnp.array(RIGHT), keys))
  rows = []
  for right, curves in zip(RIGHT, measured, strict=True):
    first, statistic, lam = predict(objective.choices, right / ARMS)
    ends = curves[:, -STEPS // 5 :].mean(axis=1)
    starts = curves[:, :10].mean(axis=1)
    rows.append(
      {
        "baseline": label,
        "p": right / ARMS,
        "statistic": statistic,
        "start_predicted": first,
        "start_measured": float(starts.mean()),
        "end_predicted": lam,
        "end_measured": float(ends.mean()),
        "end_spread": float(ends.std(ddof=1)),
      }
    )
  return rows


def main() -> None:
  """Measures, prints, writes."""
  rows = [row for item in BASELINES.items() for row in compare(*item)]
  print(f"beta = {BETA}, groups of {GROUP_SIZE}")
  print(f"{'baseline':36}{'p':>7}{'lambda first':>22}{'statistic':>11}{'lambda at the end':>27}")
  print(f"{'':43}{'predicted':>11}{'measured':>11}{'':11}{'predicted':>11}{'measured':>16}")
  for r in rows:
    end = f"{r['end_measured']:9.4f} ± {r['end_spread']:.4f}"
    print(
      f"{r['baseline']:36}{r['p']:7.3f}{r['start_predicted']:11.4f}{r['start_measured']:11.4f}"
      f"{r['statistic']:11.3f}{r['end_predicted']:11.4f}{end:>20}"
    )
  agree = sum(np.sign(r["end_predicted"]) == np.sign(r["end_measured"]) for r in rows)
  print(f"sign of lambda at the end as predicted: {agree} of {len(rows)}")
  about = {"command": "python -m benchmarks.regimes", "machine": machine(), "beta": BETA}
  path = RESULTS / "regimes.json"
  path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
