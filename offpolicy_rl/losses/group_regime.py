"""The regime of a baseline at its finite group size, for 0/1 rewards. No JAX.

Over fresh groups of G samples, the expected gradient of a ratio-free regression is that of the
advantage A_eff(y) = E[A | y]: the mean over the other G - 1 samples, here Binomial(G - 1, p)
successes, summed exactly. The induced target is the Lambert one of A_eff (induced_target.py;
arXiv 2605.28150), and its regime the sign of log E e^(A_eff / beta). A value estimate that includes
a sample is biased upwards for that sample: OAPL's V-hat with beta1 = beta is in the negative regime
at every finite G, its leave-one-out form in the positive one.
"""

import math
from collections.abc import Sequence

import numpy as np

BASELINES = ("mean", "loo", "std", "vhat", "vhat_loo")
RATES = tuple(round(0.1 * k, 1) for k in range(1, 10))  # success rates that a warning checks


def effective_advantage(
  baseline: str,
  p: float,
  group_size: int,
  *,
  beta: float,
  beta1: float | None = None,
  kappa: float = 0.0,
  dv: float = 0.0,
  std_eps: float = 1e-4,
) -> tuple[float, float]:
  """(A_eff of a failure, A_eff of a success), in units of reward.

  Args:
    baseline: one of BASELINES, as objective.advantage.
    p: success rate under the sampler's policy, in (0, 1).
    group_size: G >= 2.
    beta: temperature of the regression; counts here only through kappa and beta1.
    beta1: temperature of the value ("vhat", "vhat_loo"); None = beta.
    kappa: pessimistic shift in units of beta.
    dv: pessimistic shift in units of reward.
    std_eps: added to the deviation ("std", G - 1 degrees of freedom).
  """
  beta1 = beta if beta1 is None else beta1
  others = np.arange(group_size)  # successes among the other G - 1
  log_chance = others * math.log(p) + (group_size - 1 - others) * math.log1p(-p)
  log_chance -= [math.lgamma(k + 1) + math.lgamma(group_size - k) for k in others]
  chance = np.exp(log_chance + math.lgamma(group_size))
  effective = []
  for reward in (0, 1):
    total = others + reward
    mean = total / group_size
    if baseline == "mean":
      advantage = reward - mean
    elif baseline == "loo":
      advantage = reward - others / (group_size - 1)
    elif baseline == "std":
      deviation = np.sqrt(mean * (1 - mean) * group_size / (group_size - 1))
      advantage = (reward - mean) / (deviation + std_eps)
    elif baseline == "vhat":
      advantage = reward - _value(total, group_size, beta1)
    else:
      advantage = reward - _value(others, group_size - 1, beta1)
    effective.append(float(np.sum(chance * advantage)) + kappa * beta + dv)
  return effective[0], effective[1]


def group_regime_statistic(
  baseline: str, p: float, group_size: int, *, beta: float, **choices: float
) -> float:
  """log E e^(A_eff / beta): its sign is the regime. `choices`: as in effective_advantage."""
  failure, success = effective_advantage(baseline, p, group_size, beta=beta, **choices)
  return float(np.logaddexp(math.log1p(-p) + failure / beta, math.log(p) + success / beta))


def required_beta1(
  group_size: int,
  *,
  beta: float,
  kappa: float = 0.0,
  dv: float = 0.0,
  rates: Sequence[float] = RATES,
) -> float | None:
  """Smallest beta1 at which "vhat" is in the negative regime at none of the rates.

  None if no beta1 is large enough: beta1 -> inf is the mean baseline.
  """

  def worst(beta1):  # rises with beta1
    return _worst("vhat", group_size, rates, beta=beta, beta1=beta1, kappa=kappa, dv=dv)[0]

  low, high = 1e-3 * beta, 1e6 * max(beta, 1.0)
  if worst(high) < 0:
    return None
  while high > low * (1 + 1e-12):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if worst(middle) < 0 else (low, middle)
  return high


def regime_warning(
  baseline: str,
  group_size: int,
  *,
  beta: float,
  beta1: float | None = None,
  kappa: float = 0.0,
  dv: float = 0.0,
) -> str | None:
  """Advice for a baseline that is in the negative regime at one of RATES, else None."""
  shifts = {"kappa": kappa, "dv": dv}
  statistic, p = _worst(baseline, group_size, RATES, beta=beta, beta1=beta1, **shifts)
  if statistic >= 0:
    return None
  keys = f"objective.advantage={baseline}, objective.beta={beta:g}, objective.kappa={kappa:g}"
  advice = []
  if baseline == "vhat":
    keys += f", objective.beta1={beta if beta1 is None else beta1:g}"
    enough = required_beta1(group_size, beta=beta, kappa=kappa, dv=dv)
    if enough is not None:
      advice.append(f"raise objective.beta1 to at least {_round_up(enough)}")
    for other in ("vhat_loo", "mean"):
      if _worst(other, group_size, RATES, beta=beta, beta1=beta1, **shifts)[0] >= 0:
        advice.append(f"use objective.advantage={other}")
  advice.append(f"raise objective.kappa to at least {_round_up(kappa - statistic)}")
  return (
    f"{keys} at learner.group_size={group_size}: the induced target is sharper than exponential "
    f"(negative regime) at success rate {p:g}, log E e^(A/beta) = {statistic:.3g}; "
    + ", or ".join(advice)
  )


def _value(successes: np.ndarray, size: int, beta1: float) -> np.ndarray:
  """beta1 log mean e^(r / beta1) of `size` rewards, of which `successes` are 1 and the rest 0."""
  with np.errstate(divide="ignore"):
    ones = np.log(successes / size) + 1 / beta1
    return beta1 * np.logaddexp(ones, np.log1p(-successes / size))


def _worst(baseline, group_size, rates, **choices) -> tuple[float, float]:
  return min((group_regime_statistic(baseline, p, group_size, **choices), p) for p in rates)


def _round_up(x: float) -> str:
  """x rounded up to three digits, so that following the advice crosses the boundary."""
  scale = 10.0 ** (2 - math.floor(math.log10(abs(x)))) if x else 1.0
  return f"{math.ceil(x * scale) / scale:.6g}"
