"""What the laboratory's numbers say: tests, choice of the base, and verdicts that can fall."""

import numpy as np
import pytest
import scipy.stats

from benchmarks import lag_claims, lag_page, paired

SETTINGS = ([0, False], [64, False])
SPREAD = np.linspace(-0.01, 0.01, 8)


def result(label, finals, tuning_scores=(0.5, 0.5), **others):
  """A result whose reports all have these final scores: one per setting, plus a spread."""
  rows = [
    {
      "setting": setting,
      "value": 0.01,
      "rate": 0.01,
      "tuning_score": score,
      **{
        field: (final + SPREAD).tolist()
        for field in ("accuracy", "mean_accuracy", "entropy", "pass_at_16")
      },
    }
    for setting, final, score in zip(SETTINGS, finals, tuning_scores, strict=True)
  ]
  return {"label": label, "reports": {"tuned": rows, "one": rows}, **others}


def noisy(row, seed):
  """The same row with noise of its own: a difference of nothing but noise."""
  noise = np.random.default_rng(seed).normal(0, 0.01, 8)
  return row | {"accuracy": (np.array(row["accuracy"]) + noise - noise.mean()).tolist()}


def test_p_value_is_that_of_the_paired_t_test():
  a, b = np.random.default_rng(0).normal(size=(2, 8))
  expected = scipy.stats.ttest_rel(a, b).pvalue
  assert paired.p_value((a - b).tolist()) == pytest.approx(expected, rel=1e-9)
  assert paired.p_value([0.0, 0.0]) == 1 and paired.p_value([0.1, 0.1]) == 0


def test_holm_equals_its_definition():
  """Worked by hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
  assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert paired.holm([0.6, 0.9]) == [1.0, 1.0] and paired.holm([]) == []


def test_the_base_is_chosen_by_tuning_and_not_by_what_is_reported():
  lucky = result("grpo", (0.99, 0.99), (0.5, 0.6))
  tuned_well = result("cispo", (0.9, 0.9), (0.4, 0.8))
  both = [lucky, tuned_well, result("mean", (1.0, 1.0), (0.9, 0.9))]
  assert lag_claims.best_ratio(both, "tuned", 0)["label"] == "grpo"
  assert lag_claims.best_ratio(both, "tuned", 1)["label"] == "cispo"
  assert lag_claims.best_ratio(both, "one", 0)["label"] == "cispo", "best on average"
  assert lag_claims.best_ratio([both[2]], "tuned", 0) is None


def test_differences_are_paired_and_adjusted_together():
  ratio, mean = result("grpo", (0.8, 0.9)), result("mean", (0.8, 0.95))
  mean["reports"]["tuned"] = [noisy(row, i) for i, row in enumerate(mean["reports"]["tuned"])]
  same, above = lag_claims.against_ratios([ratio, mean], "tuned", "accuracy")
  gaps = [
    np.array(a["accuracy"]) - np.array(b["accuracy"])
    for a, b in zip(mean["reports"]["tuned"], ratio["reports"]["tuned"], strict=True)
  ]
  expected = paired.holm([paired.p_value(gap.tolist()) for gap in gaps])
  assert [same.p, above.p] == pytest.approx(expected)
  assert not same.is_clear and above.is_clear and above.mean == pytest.approx(0.05)
  table = lag_page.case_table([same, above], "minus")
  assert "**+0.050 ±" in table and table.count("**") == 2 and "lag 64, `grpo`" in table


def test_a_claim_is_adjusted_with_the_whole_table():
  """Two cases of a claim among four that are tested together."""
  results = [result("grpo", (0.8, 0.9)), result("mean", (0.8, 0.9155)), result("oapl", (0.8, 0.9))]
  for i in (1, 2):
    rows = results[i]["reports"]["tuned"]
    results[i]["reports"]["tuned"] = [noisy(row, 2 * i + j) for j, row in enumerate(rows)]
  cases = lag_claims.against_ratios(results, "tuned", "accuracy")
  gaps = [
    (np.array(a["accuracy"]) - np.array(b["accuracy"])).tolist()
    for mine in results[1:]
    for a, b in zip(mine["reports"]["tuned"], results[0]["reports"]["tuned"], strict=True)
  ]
  assert [c.p for c in cases] == pytest.approx(paired.holm([paired.p_value(g) for g in gaps]))
  alone = paired.p_value(gaps[1])
  assert 2 * alone < paired.LEVEL < cases[1].p, "clear among two, not in the table"
  assert "tuned for each lag: above in 0 of 2 cases" in lag_claims.verdicts(results)


def test_the_highest_ratio_is_that_of_the_reported_seeds():
  results = [result("grpo", (0.8, 0.95), (0.1, 0.1)), result("cispo", (0.8, 0.9), (0.9, 0.9))]
  assert lag_claims.highest_ratio(results, "tuned", 1, "accuracy")["label"] == "grpo"
  text = lag_claims.verdicts([*results, result("mean", (0.8, 0.92))])
  best, highest = [
    line for line in text.splitlines() if "one setting" in line and "`mean`" in line
  ][:2]
  assert "above in 1 of 1 cases (`mean` at lag 64 +0.020 ± 0.000 to `cispo`), below in 0" in best
  assert "above in 0 of 1 cases, below in 1 (`mean` at lag 64 -0.030 ± 0.000 to `grpo`)" in highest


def test_verdicts_follow_the_numbers():
  falls = [result("grpo", (0.9, 0.5)), result("mean", (0.9, 0.9)), result("shift_1", (0.9, 0.4))]
  text = lag_claims.verdicts(falls)
  assert "lower in 1 of 1 cases (`grpo` at lag 64 -0.400 ± 0.000), higher in 0" in text
  assert "above in 1 of 2 cases (`mean` at lag 64 +0.400" in text
  assert "below in 1 (`shift_1` at lag 64 -0.100" in text
  holds = lag_claims.verdicts([result("grpo", (0.5, 0.9)), result("mean", (0.9, 0.9))])
  assert "lower in 0 of 1 cases, higher in 1" in holds


def test_kappa_is_monotone_only_if_every_step_is():
  kappas = {"-1.0": 0.7, "0.5": 0.85, "1.0": 0.9, "2.0": 1.0}

  def with_kappas(finals):
    rows = {k: result("mean", (v, v))["reports"]["tuned"] for k, v in finals.items()}
    return result("mean", (0.8, 0.8), kappas=rows)

  rising = with_kappas(kappas)
  assert list(lag_claims.by_kappa(rising)) == [-1.0, 0.0, 0.5, 1.0, 2.0]
  words, gap, _ = lag_claims.trend(rising, 0, "entropy")
  assert words == "rises at every step" and gap == pytest.approx(0.3)
  assert lag_claims.trend(with_kappas(kappas | {"0.5": 0.95}), 0, "entropy")[0] == "not monotone"
  falling = with_kappas({k: 1.6 - v for k, v in kappas.items()})
  assert lag_claims.trend(falling, 1, "entropy")[0] == "falls at every step"
  assert "entropy falls at every step" in lag_claims.verdicts([falling])
  assert lag_page.kappa_table(rising).count("\n") == 11


def test_a_rule_is_within_noise_or_it_is_not():
  tuned, level = result("mean", (0.9, 0.9)), result("beta_by_lag", (0.9, 0.9))
  assert "`beta_by_lag`: clearly below in 0 of 2" in lag_claims.verdicts([tuned, level])
  worse = result("beta_by_lag", (0.9, 0.7))
  text = lag_claims.verdicts([tuned, worse])
  assert "`beta_by_lag`: clearly below in 1 of 2" in text and "-0.200 at lag 64" in text
  assert "In part: in 1 of 2 cases" in text
