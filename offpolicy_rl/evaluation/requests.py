"""Held-out evaluation: tickets of their own kind, and what their groups say (greedy, pass@k)."""

import collections
import math
from collections.abc import Callable, Sequence
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


def tickets(examples, *, name: str, version: int, step: int, num_samples: int, temperature: float):
  """One greedy and one sampled ticket per example, for exactly this version."""
  made = []
  for index, example in enumerate(examples):
    for mode, count, temp in (("greedy", 1, 0.0), ("sampled", num_samples, temperature)):
      made.append(
        types.Ticket(
          ticket_id=f"{types.EVAL}/{name}/{index}/{mode}",
          kind=types.EVAL,
          step=step,
          group_index=index,
          prompt_tokens=example.prompt_tokens,
          answer=example.answer,
          min_version=version,
          max_version=version,
          num_completions=count,
          temperature=temp,
        )
      )
  return made


def summarise(groups: list[types.FinishedGroup], k: int) -> dict[str, float]:
  """Accuracies over problems: greedy, pass@1 and pass@k of the sampled completions.

  `heldout/pass@1_stderr` is the standard error over problems. Right is a verdict of exactly 1. A
  completion whose verifier failed is wrong, and counted; so is a problem that no sampler could
  answer (heldout/unanswered).
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
  }


def _correct(finished: types.FinishedGroup) -> list[bool]:
  """Of each completion."""
  wrong = [False] * finished.ticket.num_completions
  return [t.verdict == 1.0 for t in finished.group.trajectories] or wrong


class Answered(NamedTuple):
  """One problem with the verdicts on its completions."""

  greedy: bool  # the greedy completion is right
  correct: Sequence[bool]  # sampled completions
  answers: Sequence[str | None]  # what they say, see `votes.final_answer`


class Estimate(NamedTuple):
  """A mean over problems with its 95 % interval."""

  name: str
  value: float
  low: float
  high: float


def estimates(problems: Sequence[Answered], ks: Sequence[int], *, seed: int) -> list[Estimate]:
  """greedy, pass@k of every k, and maj@k of every k > 1, with `intervals` over problems."""
  per_problem = {"greedy": [float(p.greedy) for p in problems]}
  for k in ks:
    per_problem[f"pass@{k}"] = [pass_at_k(len(p.correct), sum(p.correct), k) for p in problems]
  for k in ks:
    if k > 1:
      per_problem[f"maj@{k}"] = [votes.majority_at_k(p.answers, p.correct, k) for p in problems]
  values = np.array(list(per_problem.values()))
  found = zip(per_problem, values.mean(axis=1), *intervals(values, seed=seed).T, strict=True)
  return [Estimate(name, *map(float, numbers)) for name, *numbers in found]


def intervals(
  values: np.ndarray, *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> np.ndarray:
  """Intervals of means over problems drawn from a larger set, by the Bayesian bootstrap.

  Every draw weighs the problems by a Dirichlet distribution (Rubin, "The Bayesian Bootstrap",
  1981) to which half a problem of value 0 and half a one of value 1 are added. For values that are
  0 or 1 this is the interval of Jeffreys (Brown, Cai & DasGupta, "Interval Estimation for a
  Binomial Proportion", 2001). So it has a width also where every problem was solved, or none, and
  stays in [0, 1]; it always holds the mean itself.

  Args:
    values: [M, N] in [0, 1]: M statistics of the same N problems.
    draws: the same for all M statistics.

  Returns:
    float64 [M, 2]: low, high.
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


class Desk:
  """Asks for evaluations and hands in the results when all their groups are back.

  `ledger` is anything with `add(tickets, first=)` and `take(ticket_ids, timeout)`.
  """

  def __init__(self, ledger, examples, *, samples: int, temperature: float, write: Callable):
    """`write(step, metrics)` receives each result."""
    self._ledger, self._examples = ledger, examples
    self._samples, self._temperature, self._write = samples, temperature, write
    self._open: collections.deque = collections.deque()  # (step, phase, version, ticket ids)

  def ask(self, phase: str, *, version: int, step: int) -> None:
    """Evaluates `version` before any training ticket is answered."""
    made = tickets(
      self._examples,
      name=f"{phase}-{version}",
      version=version,
      step=step,
      num_samples=self._samples,
      temperature=self._temperature,
    )
    self._ledger.add(made, first=True)
    self._open.append((step, phase, version, [ticket.ticket_id for ticket in made]))

  def open(self) -> list[dict]:
    """What was asked and is not written yet; a resumed run asks it again, in this order."""
    keys = ("step", "phase", "version", "ticket_ids")
    return [dict(zip(keys, row, strict=True)) for row in self._open]

  def collect(self, timeout: float = 0.0) -> bool:
    """Writes the results that are there; True when none is open any more."""
    while self._open:
      step, phase, version, ids = self._open[0]
      groups = self._ledger.take(ids, timeout)
      if groups is None:
        return False
      self._open.popleft()
      self._write(step, {"phase": phase, "version": version, **summarise(groups, self._samples)})
    return True
