"""offpolicy-rl explain: cards, tables, pictures, and what it refuses."""

import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.cli import explain, main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
  code = main.main(["explain", *arguments])
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_it_lists_every_preset_with_its_formula(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "400")
  code, out, _ = run(capsys)
  assert code == 0
  for name, choices in losses.PRESETS.items():
    assert f" {name} " in out and choices.formula in out


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_every_preset_has_a_card_whose_flags_rebuild_it(capsys, monkeypatch, name):
  monkeypatch.setenv("COLUMNS", "400")
  code, out, _ = run(capsys, f"--objective={name}")
  assert code == 0 and f"{name}   {losses.PRESETS[name].formula}\n" in out
  shown = [line.strip() for line in out.splitlines() if line.startswith("  --config.objective.")]
  assert f"--config.objective.fn={losses.PRESETS[name].fn}" in shown
  defaults = losses.Choices(name="", formula="", source="")
  different = [
    field.name
    for field in losses.choices.OVERRIDABLE
    if field.name not in ("name", "fn")
    and getattr(losses.PRESETS[name], field.name) != getattr(defaults, field.name)
  ]
  assert {s.split("=")[0].rpartition(".")[2] for s in shown} == {"fn", *different}


def test_it_says_which_presets_coincide_and_what_an_objective_reduces_to(capsys):
  words = lambda *arguments: " ".join(run(capsys, *arguments)[1].split())
  assert "with one update per batch, up to a constant factor: copg, vargrad" in words()
  plain = "policy_gradient (advantage=std, weight=truncate, weight_high=1.28, aggregation=token_"
  capped = ("--objective=tis", "--config.objective.correction_high=1.28")
  said = words(*capped)
  assert f"With one update per batch its gradient is that of {plain}mean)" in said
  assert "1 times that of cispo" in said
  assert "gradient" not in words(*capped, "--config.learner.epochs=2")
  on_policy = words("--objective=minirl", "--config.lag.max_lag=0")
  assert "With one update per batch, on-policy its gradient is" in on_policy
  assert "1 times that of reinforce" in on_policy


def test_targets_of_two_rewards_by_hand():
  """beta_shift, kappa = 1, beta = 1, rewards 0 and 1: A = 0.5, 1.5. Solved here by bisection."""
  targets = explain.explain([0.0, 1.0], losses.choose("beta_shift", beta=1.0))
  np.testing.assert_allclose(targets[0].advantages, [0.5, 1.5])
  p_low, p_high = 0.5, 1 - 1e-9  # at the fixed point both completions give the same lambda
  for _ in range(200):
    p = (p_low + p_high) / 2
    gap = (1.5 - np.log(2 * p)) / (2 * p) - (0.5 - np.log(2 * (1 - p))) / (2 * (1 - p))
    p_low, p_high = (p, p_high) if gap > 0 else (p_low, p)
  assert targets[0].ratios[1] / 2 == pytest.approx(p, abs=1e-5)
  assert targets[0].lam == pytest.approx((1.5 - np.log(2 * p)) / (2 * p), abs=1e-4)
  assert [t.regime for t in targets] == [1, 1, 1, 0, -1]


def test_the_boundary_is_the_exponential_tilt():
  rewards = [0.0, 0.3, 1.0, 1.0]
  targets = explain.explain(rewards, losses.choose("oapl", beta=0.4))
  tilt = np.exp(np.array(rewards) / 0.4)
  np.testing.assert_allclose(targets[3].ratios, tilt / tilt.mean(), rtol=1e-4)


def test_a_picture_and_a_table(capsys, tmp_path):
  pytest.importorskip("matplotlib")
  path = tmp_path / "target.png"
  code, out, _ = run(capsys, "--rewards=0,1,1", "--objective=oapl", "--beta=0.2", f"--png={path}")
  assert code == 0
  assert "regime is positive" in out and str(path) in out
  assert path.read_bytes().startswith(b"\x89PNG")


def test_overrides_reach_the_objective(capsys):
  flags = ("--rewards=0,0,1", "--beta=1", "--config.objective.kappa=-2")
  code, out, _ = run(capsys, *flags)
  assert code == 0
  assert "regime is negative" in out and "several minima" in out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--rewards=0,a"], "--rewards: got '0,a', expected numbers such as 0,0,1,1"),
    (["--rewards=1"], "--rewards: got [1.0], expected at least two finite numbers"),
    (["--rewards=0,nan"], "--rewards: got '0,nan', expected numbers such as 0,0,1,1"),
    (["--rewards=0,1", "--objective=grpo"], "got grpo, expected a regression"),
    (
      ["--rewards=0,1", "--config.objective.beta=-1"],
      "objective.beta: got -1.0, expected a number",
    ),
    (["--objective=ppo"], "objective.name: got 'ppo', expected one of"),
  ],
)
def test_mistakes_are_named(capsys, arguments, message):
  code, _, err = run(capsys, *arguments)
  assert code != 0
  assert message in err


@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_figure_is_cut_on_a_narrow_terminal(capsys, monkeypatch, columns):
  monkeypatch.setenv("COLUMNS", columns)
  code, out, _ = run(capsys, "--objective=oapl", "--beta=0.5", "--rewards=0,0,1,1")
  assert code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in out
  own = next(line for line in out.splitlines() if line.startswith("  oapl "))
  [t, *_] = explain.explain([0.0, 0.0, 1.0, 1.0], losses.choose("oapl", beta=0.5))
  assert own.split() == [
    "oapl",
    "positive",
    f"{t.lam:.4g}",
    f"{t.reward:.4f}",
    f"{t.kl:.4f}",
    f"{t.entropy:.4f}",
    f"{t.ess:.3f}",
    f"{t.temperature:.4g}",
  ]


def test_an_unknown_objective_is_a_wrong_argument(capsys):
  code, _, err = run(capsys, "--objective=nonesuch")
  assert code == 2
  assert err.startswith("offpolicy-rl explain: objective.name: got 'nonesuch', expected one of")
