"""Checks a golden file: losses and gradients of an independent float64 implementation.

  python -m tests.losses.golden [--fixture FILE] [--float32]

Prints the worst relative error of the loss and of the gradient per configuration; exit code 1 when
one is above its tolerance (1e-9 in float64; 2e-5 in float32, where the two rows with beta = 1e-3
in canonical scaling, a residual divided by beta, get 1e-3, and those with candidates what
subtracting their probabilities from 1 costs).
"""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import losses

FIXTURE = pathlib.Path(__file__).parent / "golden.json"
FLOAT64, FLOAT32, FLOAT32_CANONICAL = 1e-9, 2e-5, 1e-3
_ROUNDING = 2.0**-23  # of float32, near 1

# A fixture names an objective and what is special about it. Objective -> our choices ...
START = {
  "reinforce": {"fn": "policy_gradient"},
  "ppo_clip": {"fn": "ppo_clip", "anchor": "proximal"},
  "cispo": {"fn": "policy_gradient", "anchor": "proximal", "weight": "truncate"},
  "tis_reinforce": {"preset": "tis_reinforce"},
  "aipo": {"preset": "aipo"},
  "prime_double_mask": {"preset": "prime_double_mask"},
  "prime_dppo_kl": {"preset": "prime_dppo"},
  "minirl": {"preset": "minirl"},
  "sapo": {"preset": "sapo", "anchor": "proximal"},
  "topr": {"preset": "topr"},
  "regression": {"preset": "beta_shift", "kappa": 0.0},
  "contrastive": {"preset": "copg"},
  "rebel": {"preset": "rebel"},
  "dpo": {"preset": "dpo"},
  "score_centering": {"preset": "score_centering"},
  "score_centering_tis": {"preset": "score_centering_tis"},
  "preset": {},  # named in the row, with our keys
}
# ... configuration key -> our choice, where the value carries over ...
KEYS = {
  "agg": "aggregation",
  "eps_low": "clip_low",
  "eps_high": "clip_high",
  "kl": "kl",
  "kl_coef": "kl_coef",
  "dual_c": "dual_clip",
  "opsm": "opsm_delta",
  "clip_low": "weight_low",
  "clip_max": "weight_high",
  "cap": "weight_high",
  "delta": "ratio_max",
  "level": "level",
  "lo": "weight_low",
  "hi": "weight_high",
  "eps": "std_eps",
  "beta": "beta",
  "beta1": "beta1",
  "kappa": "kappa",
  "scale": "scale",
  "anchor": "anchor",
  "kl_tau": "kl_tau",
  "mask_low": "gap_low",
  "mask_high": "gap_high",
  "symmetric": "gap_two_sided",
  "split": "topr_sign",
  **{
    key: key
    for key in ("preset", "moment_directional", "positive_share", "weight_low", "weight_high")
  },
}
# ... and where it does not.
SPECIAL = {
  ("adv_kind", "asym"): {"advantage": "mean"},
  ("adv_kind", "shift"): {"advantage": "mean"},
  ("adv_kind", "std0"): {"advantage": "std", "std_ddof": 0},
  ("adv_kind", "rfpp_baseline"): {"advantage": "whitened"},
  ("old", "behavior"): {"anchor": "sampler"},
  ("vstar", "case.vstar"): {"advantage": "value"},
  ("length", "mean"): {"log_ratio": "mean"},
  ("length", "sum_over_len"): {"aggregation": "seq_mean"},
  ("kind", "ipo"): {"fn": "pair_ipo"},
}


def objective_of(row: dict, case: dict) -> losses.Objective:
  """The objective that a fixture row describes."""
  given = dict(START[row["objective"]])
  for key, value in row["config"].items():
    if key == "corr":
      given |= {
        "correction": value["kind"].replace("geo_seq_mask_tis", "geo_mask"),
        "correction_low": value.get("lo"),
        "correction_high": value["hi"],
      }
    elif key == "dv":
      given["shift"] = -value
    elif key == "eta":
      given["beta"] = 1 / value
    elif key == "adv_kind" and (key, value) not in SPECIAL:
      given["advantage"] = value
    else:
      given |= SPECIAL[key, value] if (key, str(value)) in SPECIAL else {KEYS[key]: value}
  start = given.pop("preset", None) or losses.Choices(name="", formula="", source="")
  return losses.objective(start, **given, max_tokens=case["L_max"])


def inputs_of(case: dict) -> losses.LossInputs:
  """A case's arrays in the current precision; not all cases have candidates."""
  if_there = lambda name: jnp.asarray(case[name]) if name in case else None
  return losses.LossInputs(
    policy_logprobs=jnp.asarray(case["lp_policy"]),
    sampler_logprobs=jnp.asarray(case["lp_behavior"]),
    loss_mask=jnp.asarray(case["mask"]) > 0,
    rewards=jnp.asarray(case["reward"], float),
    group_ids=jnp.asarray(case["group"]),
    reference_logprobs=jnp.asarray(case["lp_reference"]),
    proximal_logprobs=jnp.asarray(case["lp_proximal"]),
    values=jnp.asarray(case["vstar"], float),
    teacher_logprobs=jnp.asarray(case["lp_reference"]),
    candidate_logprobs=if_there("lp_policy_candidates"),
    sampler_candidate_logprobs=if_there("lp_behavior_candidates"),
  )


def errors(row: dict, case: dict) -> tuple[float, float]:
  """Relative errors of loss and gradient against the larger of the loss and its largest part."""
  objective, inputs = objective_of(row, case), inputs_of(case)

  def loss_of(policy_logprobs, candidate_logprobs):
    given = {"policy_logprobs": policy_logprobs, "candidate_logprobs": candidate_logprobs}
    return objective(inputs._replace(**given))[0]

  loss, gradients = jax.value_and_grad(loss_of, (0, 1))(
    inputs.policy_logprobs, inputs.candidate_logprobs
  )
  names = ("grad", "grad_candidates") if "grad_candidates" in row else ("grad",)
  expected = [np.array(row[name]) for name in names]
  size = max(np.abs(x).max() for x in expected)
  scale = max(abs(row["loss"]), size)
  gaps = [np.asarray(x, np.float64) - y for x, y in zip(gradients, expected, strict=False)]
  gradient_error = max(np.abs(gap).max() for gap in gaps) / max(size, 1e-12)
  return abs(float(loss) - row["loss"]) / max(scale, 1e-12), gradient_error


def tolerance(row: dict, case: dict, *, float32: bool) -> float:
  """How far off a row may be."""
  if not float32:
    return FLOAT64
  config = row["config"]
  if "grad_candidates" in row:
    return FLOAT32 + _ROUNDING / _least_rest(case)
  canonical = row["objective"] == "regression" and config.get("scale") != "plain"
  return FLOAT32_CANONICAL if canonical and config["beta"] <= 1e-3 else FLOAT32


def _least_rest(case: dict) -> float:
  """The least probability that a token's candidates leave, of those that the loss divides by.

  1 - sum p has the rounding error of a number near 1. Where less than 1e-6 is left, that is taken.
  """
  mask = np.array(case["mask"]) > 0
  heads = [np.array(case[f"lp_{whose}_candidates"])[mask] for whose in ("policy", "behavior")]
  rests = 1 - np.exp(np.stack(heads)).sum(-1)
  return np.min(rests, initial=1, where=rests > 1e-6 - 2 * _ROUNDING)


def by_name(fixture: dict) -> dict[str, dict]:
  """Name -> case."""
  return {case["name"]: case for case in fixture["cases"]}


def check(fixture: dict, *, float32: bool = False) -> list[tuple[dict, float, float]]:
  """(row, loss error, gradient error) of every row."""
  cases = by_name(fixture)
  with jax.enable_x64(not float32):
    return [(row, *errors(row, cases[row["case"]])) for row in fixture["results"]]


def main(argv: list[str] | None = None) -> int:
  """Prints a table; 1 when a row is out of tolerance."""
  parser = argparse.ArgumentParser(prog="python -m tests.losses.golden", description=__doc__)
  parser.add_argument("--fixture", type=pathlib.Path, default=FIXTURE)
  parser.add_argument("--float32", action="store_true")
  arguments = parser.parse_args(argv)
  fixture = json.loads(arguments.fixture.read_text())
  found, cases = check(fixture, float32=arguments.float32), by_name(fixture)
  bad, worst = 0, {}
  for row, loss_error, gradient_error in found:
    allowed = tolerance(row, cases[row["case"]], float32=arguments.float32)
    good = max(loss_error, gradient_error) <= allowed
    bad += not good
    old = worst.get(row["name"], (0.0, 0.0, True))
    worst[row["name"]] = (max(old[0], loss_error), max(old[1], gradient_error), old[2] and good)
  print(f"{'configuration':28}{'loss':>10}{'gradient':>10}   worst relative error")
  for name, (loss_error, gradient_error, good) in worst.items():
    print(f"{name:28}{loss_error:10.1e}{gradient_error:10.1e}{'' if good else '   WRONG'}")
  print(f"{len(found) - bad} of {len(found)} rows within tolerance")
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main())
