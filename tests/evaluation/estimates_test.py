"""pass@k, intervals, and what an evaluation says."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats

from offpolicy_rl import types
from offpolicy_rl.evaluation import estimates, requests
from tests.evaluation.requests_test import Example, answer


@pytest.mark.parametrize(
  ("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 1, 4), (8, 3, 8)]
)
def test_pass_at_k_is_the_share_of_all_k_subsets_with_a_success(n, c, k):
  outcomes = [1] * c + [0] * (n - c)
  subsets = list(itertools.combinations(outcomes, k))
  assert estimates.pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_pass_at_k_needs_k_samples():
  with pytest.raises(ValueError, match="k: 5, expected 1 to num_samples = 4"):
    estimates.pass_at_k(4, 1, 5)


def test_estimates_are_means_over_problems():
  problems = [
    estimates.Verdicts(True, [True, True, False, False], ["1", "1", "2", "1"]),
    estimates.Verdicts(False, [False] * 4, ["3", None, None, None]),
    estimates.Verdicts(True, [True] * 4, ["5"] * 4),
  ]
  found = {e.name: e for e in estimates.estimates(problems, (1, 2, 4), seed=0)}
  assert {name: e.value for name, e in found.items()} == pytest.approx(
    {
      "greedy": 2 / 3,
      "pass@1": 0.5,
      "pass@2": (5 / 6 + 0 + 1) / 3,
      "pass@4": 2 / 3,
      # Votes of the first problem: "1", "1" is right; "2", "1" a tie of two wrong ones. Of all
      # four: "1" has three votes of which two were judged right.
      "maj@2": (0.5 + 0 + 1) / 3,
      "maj@4": (2 / 3 + 0 + 1) / 3,
    }
  )
  assert all(0 <= e.low < e.value < e.high <= 1 for e in found.values())
  assert found == {e.name: e for e in estimates.estimates(problems, (1, 2, 4), seed=0)}
  assert found["greedy"].low != estimates.estimates(problems, (1,), seed=1)[0].low


def test_episodes_have_no_vote():
  problems = [
    estimates.Verdicts(True, [True, False], []),
    estimates.Verdicts(False, [False] * 2, []),
  ]
  found = estimates.estimates(problems, (1, 2), seed=0)
  assert [e.name for e in found] == ["greedy", "pass@1", "pass@2"]


@pytest.mark.parametrize(("solved", "problems"), [(0, 30), (3, 30), (15, 30), (30, 30), (90, 400)])
def test_of_zeros_and_ones_it_is_the_interval_of_jeffreys(solved, problems):
  values = np.zeros((1, problems))
  values[0, :solved] = 1
  [[low, high]] = estimates.intervals(values, draws=20_000)
  beta = scipy.stats.beta(solved + 0.5, problems - solved + 0.5)
  exact = (0.0 if solved == 0 else beta.ppf(0.025), 1.0 if solved == problems else beta.ppf(0.975))
  assert (low, high) == pytest.approx(exact, abs=4e-3)
  assert high - low > 0.01


@pytest.mark.parametrize("problems", [40, 200])
@pytest.mark.parametrize("alpha_beta", [(0.3, 0.7), (0.2, 6.0), (8.0, 2.0)])
@pytest.mark.parametrize("k", [1, 4])
def test_intervals_cover_the_truth(problems, alpha_beta, k):
  """Problems whose success rates are Beta(a, b), eight samples each: pass@k = E[1 - (1 - p)^k]."""
  a, b = alpha_beta
  truth = 1 - np.prod([(b + i) / (a + b + i) for i in range(k)])
  rng, runs, covered, widths = np.random.default_rng(5), 300, 0, []
  solved = rng.binomial(8, rng.beta(a, b, (runs, problems)))
  table = np.array([estimates.pass_at_k(8, c, k) for c in range(9)])
  for found in estimates.intervals(table[solved], draws=800):
    covered += found[0] <= truth <= found[1]
    widths.append(found[1] - found[0])
  assert 0.91 <= covered / runs <= 0.985
  # Not by being wide: the usual four standard errors, and what the prior adds.
  error = np.std(table[solved], axis=1).mean() / np.sqrt(problems)
  assert np.mean(widths) < 4.3 * error + 3 / problems


def test_a_problem_that_no_sampler_could_answer_is_wrong_and_counted():
  made = requests.tickets(
    [Example(3), Example(4)], name="x", version=0, step=0, num_samples=2, temperature=1.0
  )
  groups = [answer(t, [1.0] * t.num_completions) for t in made[:2]]
  groups += [types.Group(t.ticket_id, ()) for t in made[2:]]
  row = estimates.heldout_metrics(
    [types.FinishedGroup(t, g, 0) for t, g in zip(made, groups, strict=True)], k=2
  )
  assert (row["heldout/greedy"], row["heldout/pass@1"], row["heldout/problems"]) == (0.5, 0.5, 2)
  assert row["heldout/unanswered"] == 1
  once = [*groups[:3], answer(made[3], [1.0, 0.0])]  # of the second problem, the greedy one only
  row = estimates.heldout_metrics(
    [types.FinishedGroup(t, g, 0) for t, g in zip(made, once, strict=True)], k=2
  )
  assert (row["heldout/unanswered"], row["heldout/greedy"], row["heldout/pass@k"]) == (1, 0.5, 1.0)


def test_each_task_has_an_accuracy_of_its_own():
  made = requests.tickets(
    [Example(3)] * 3, name="x", version=0, step=0, num_samples=2, temperature=1.0
  )
  rewards = [[1.0], [1.0, 1.0], [0.0], [0.0, 1.0], [1.0], [1.0, 0.0]]
  groups = [types.FinishedGroup(t, answer(t, r), 0) for t, r in zip(made, rewards, strict=True)]
  row = estimates.heldout_metrics(groups, 2, ["a", "b", "a"])
  shares = {name: value for name, value in row.items() if name.startswith("heldout/pass@1/")}
  assert shares == {"heldout/pass@1/a": 0.75, "heldout/pass@1/b": 0.5}
  one = estimates.heldout_metrics(groups, 2, ["a"] * 3)
  assert one == {name: value for name, value in row.items() if name not in shares}


def test_right_is_the_verdict_whatever_was_added_to_it():
  [asked, _] = requests.tickets(
    [Example(3)], name="x", version=0, step=0, num_samples=2, temperature=1.0
  )
  one = np.ones(1, np.int32)
  shaped = types.Trajectory(one, -one.astype(np.float32), one, True, reward=1.3, verdict=1.0)
  sampled = dataclasses.replace(asked, temperature=1.0)
  row = estimates.heldout_metrics(
    [types.FinishedGroup(t, types.Group("x", (shaped,)), 0) for t in (asked, sampled)], k=1
  )
  assert row["heldout/greedy"] == row["heldout/pass@1"] == 1.0
