"""Accuracies over held-out problems: greedy, pass@k and maj@k, with intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.evaluation import votes


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """Unbiased estimate of P(at least one of k samples is right) from n >= k samples.

  1 - C(n - c, k) / C(n, k): Chen et al., "Evaluating Large Language Models Trained on Code",
  arXiv 2107.03374.
  """
  if not 1 <= k <= num_samples:
    raise ValueError(f"k: {k}, expected 1 to num_samples = {num_samples}")
  return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def heldout_metrics(
  groups: Sequence[types.FinishedGroup], k: int, tasks: Sequence[str] = ()
) -> dict[str, float]:
  """Accuracies over problems: greedy, pass@1 and pass@k of the sampled completions.

  `heldout/pass@1_stderr` is the standard error over problems. A completion is right if its verdict
  is exactly 1. One whose verifier failed is wrong, and counted; so is a problem that no sampler
  could answer (heldout/unanswered).

  Args:
    tasks: name of each problem's task, by `group_index`; of several each has `heldout/pass@1/NAME`.
  """
  greedy = [float(_correct(g)[0]) for g in groups if g.ticket.temperature == 0]
  sampled = [_correct(g) for g in groups if g.ticket.temperature > 0]
  first = [pass_at_k(len(c), sum(c), 1) for c in sampled]
  return {
    "heldout/greedy": float(np.mean(greedy)),
    "heldout/pass@1": float(np.mean(first)),
    "heldout/pass@1_stderr": float(np.std(first) / math.sqrt(len(first))),
    "heldout/pass@k": float(np.mean([pass_at_k(len(c), sum(c), k) for c in sampled])),
    "heldout/k": k,
    "heldout/problems": len(sampled),
    "heldout/unanswered": len({g.ticket.group_index for g in groups if not g.group.trajectories}),
    "heldout/verifier_failures": sum(g.group.verifier_failures for g in groups),
    **_by_task(groups, tasks),
  }


def _by_task(groups: Sequence[types.FinishedGroup], tasks: Sequence[str]) -> dict[str, float]:
  """pass@1 of each task; {} unless there are several."""
  shares: dict[str, list[float]] = {task: [] for task in tasks}
  if len(shares) < 2:
    return {}
  for g in groups:
    if g.ticket.temperature > 0:
      shares[tasks[g.ticket.group_index]].append(float(np.mean(_correct(g))))
  return {f"heldout/pass@1/{task}": float(np.mean(values)) for task, values in shares.items()}


def _correct(finished: types.FinishedGroup) -> list[bool]:
  wrong = [False] * finished.ticket.num_completions
  return [t.verdict == 1.0 for t in finished.group.trajectories] or wrong


class Verdicts(NamedTuple):
  """The verdicts on one problem's completions."""

  greedy: bool  # the greedy completion is right
  correct: Sequence[bool]  # of each sampled completion
  answers: Sequence[str | None]  # of each, see `votes.final_answer`; () = of episodes, no answers


class Estimate(NamedTuple):
  """A mean over problems with its 95 % interval."""

  name: str
  value: float
  low: float
  high: float


def estimates(problems: Sequence[Verdicts], ks: Sequence[int], *, seed: int) -> list[Estimate]:
  """greedy, pass@k for every k, and maj@k for every k > 1, with `intervals` over problems.

  Episodes have no answers to vote with, and no maj@k.
  """
  per_problem = {"greedy": [float(p.greedy) for p in problems]}
  for k in ks:
    per_problem[f"pass@{k}"] = [pass_at_k(len(p.correct), sum(p.correct), k) for p in problems]
  for k in ks:
    if k > 1 and all(p.answers for p in problems):
      per_problem[f"maj@{k}"] = [votes.majority_at_k(p.answers, p.correct, k) for p in problems]
  values = np.array(list(per_problem.values()))
  rows = zip(per_problem, values.mean(axis=1), *intervals(values, seed=seed).T, strict=True)
  return [Estimate(name, *map(float, numbers)) for name, *numbers in rows]


def intervals(
  values: np.ndarray, *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> np.ndarray:
  """Intervals of means over problems drawn from a larger set, by the Bayesian bootstrap.

  Every draw weighs the problems by a Dirichlet distribution (Rubin, "The Bayesian Bootstrap",
  1981), with half a problem of value 0 and half a problem of value 1 added. For values of 0 and 1
  this is the interval of Jeffreys (Brown, Cai & DasGupta, "Interval Estimation for a Binomial
  Proportion", 2001). So it has a width even if all problems were solved, or none, and stays in
  [0, 1]; it always contains the mean.

  Args:
    values: [statistics, problems] in [0, 1].
    draws: the same for all statistics.

  Returns:
    float64 [statistics, 2]: low, high.
  """
  prior = np.tile([0.0, 1.0], (len(values), 1))
  widened = np.concatenate([values, prior], axis=1)
  shape = np.append(np.ones(values.shape[1]), [0.5, 0.5])
  rng, means = np.random.default_rng(seed), np.empty((draws, len(values)))
  for draw in range(draws):
    weights = rng.standard_gamma(shape)
    means[draw] = widened @ weights / weights.sum()
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
  mean = values.mean(axis=1)
  return np.stack([np.minimum(low, mean), np.maximum(high, mean)], axis=1)
