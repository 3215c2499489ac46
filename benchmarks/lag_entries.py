"""What benchmarks/lag_lab.py studies, as data: objectives, lags, seeds, grids and their growth."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from offpolicy_rl import losses

BETAS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CLIPS = (0.1, 0.2, 0.4, 0.8, 1.6)
CAPS = (1.28, 2.0, 5.0, 20.0, 100.0)
KINDS = {
  "ratio": "with importance ratios",
  "target": "without ratios, pessimism controlled",
  "other": "without ratios, pessimism not controlled",
  "rule": "beta, shift or baseline set by a rule",
}
Setting = tuple[int, bool]  # (lag, periodic)
Value = float | None
# Reports at the tuned point, but with the learning rate times this and nothing tuned again.
OFF_RATES = {"third": 1 / 3, "triple": 3.0}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One objective of the study: a preset, fixed keys, and what is tuned."""

  label: str
  preset: str
  kind: str  # one of KINDS
  fixed: Mapping[str, object]
  # Beside the learning rate: a field of losses.Choices or a name in lag_training.RULES, or "".
  tuned: str
  values: tuple[Value, ...] = (None,)
  kappas: tuple[float, ...] = ()  # kappas that are also measured, at the beta tuned without them

  def choices(self) -> losses.Choices:
    """The preset with the fixed keys."""
    return losses.choose(self.preset, **self.fixed)


_HALF = {"scale": "half_over_beta"}

# No two have the same gradient at any of their values: with one update per batch, as here, `tis` is
# `cispo` with another cap. The first entry of a preset stands for it as it was published.
ENTRIES = (
  Entry("grpo", "grpo", "ratio", {}, "clip", CLIPS),
  Entry("decoupled_ppo", "decoupled_ppo", "ratio", {}, "correction_high", CAPS),
  Entry("cispo", "cispo", "ratio", {}, "weight_high", CAPS),
  Entry("topr", "topr", "ratio", {}, ""),
  Entry("m2po", "m2po", "ratio", {}, "moment_max", (4e-3, 0.01, 0.04, 0.16, 0.64)),
  Entry("vespo", "vespo", "ratio", {}, ""),
  Entry("reinforce", "reinforce", "other", {}, ""),
  Entry("asymre", "asymre", "target", {}, "shift", (0.003, 0.01, 0.03, 0.1, 0.3)),
  Entry("copg", "copg", "target", {}, "beta", BETAS),
  Entry("oapl", "oapl", "target", _HALF | {"beta1": 1.0}, "beta", BETAS),
  Entry("oapl_coupled", "oapl", "other", _HALF, "beta=beta1", (3e-3, 1e-2, 3e-2, 0.1, 0.3)),
  Entry("shift_1", "beta_shift", "target", {"kappa": 1.0}, "beta", BETAS),
  Entry("mean", "beta_shift", "target", {"kappa": 0.0}, "beta", BETAS, (-1.0, 0.5, 1.0, 2.0)),
  Entry(
    *("beta_by_lag", "beta_shift", "rule", {"kappa": 0.0, "beta": 1e-3}, "beta_x_lag"),
    (0.03, 0.1, 0.3, 1.0, 3.0),
  ),
  Entry(
    *("shift_by_lag", "beta_shift", "rule", {"kappa": 0.0, "beta": 1e-3}, "shift_x_lag"),
    (0.03, 0.1, 0.3, 1.0, 3.0),
  ),
  Entry(
    *("kl_target", "beta_shift", "rule", {"kappa": 1.0, "beta": 3e-4}, "target_kl"),
    (0.1, 0.25, 0.69, 1.5, 3.0),
  ),
  Entry(
    *("vhat_or_mean", "oapl", "rule", _HALF, "beta=beta1, or mean"), (3e-3, 1e-2, 3e-2, 0.1, 0.3)
  ),
)


@dataclasses.dataclass(frozen=True)
class Study:
  """What is run."""

  entries: tuple[str, ...] = tuple(entry.label for entry in ENTRIES)
  settings: tuple[Setting, ...] = ((0, False), (16, False), (64, False), (256, False))
  tuning_seeds: tuple[int, ...] = (1001, 1002)
  seeds: tuple[int, ...] = tuple(range(8))  # nobody tunes on these
  learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  values: int = 5  # how many of an entry's values, the middle ones
  extensions: int = 4  # of an entry's grid, at most
  steps: int = 1024


QUICK = Study(
  entries=("grpo", "reinforce", "mean", "shift_1"),
  settings=((0, False), (16, False), (256, False)),
  tuning_seeds=(1001,),
  seeds=tuple(range(3)),
  learning_rates=(3e-3, 1e-2),
  values=2,
  extensions=0,
  steps=512,
)


class Grid(NamedTuple):
  """Every value with every learning rate, both rising."""

  values: tuple[Value, ...]
  rates: tuple[float, ...]

  def points(self) -> list[tuple[Value, float]]:
    """(value, learning rate) pairs."""
    return [(value, rate) for value in self.values for rate in self.rates]


def entry_of(label: str) -> Entry:
  """The entry of that label."""
  return next(entry for entry in ENTRIES if entry.label == label)


def is_first_of_preset(entry: Entry) -> bool:
  """Whether the entry stands for its preset as it was published."""
  return entry == next(e for e in ENTRIES if e.preset == entry.preset)


def grid(entry: Entry, study: Study) -> Grid:
  """The grid that tuning begins with: equally many points, whatever the entry."""
  rates = study.learning_rates
  if not entry.tuned:
    finer = np.geomspace(rates[0], rates[-1], len(rates) * study.values)
    return Grid((None,), tuple(float(f"{rate:.3g}") for rate in finer))
  middle = (len(entry.values) - study.values) // 2
  return Grid(entry.values[middle : middle + study.values], rates)


def beyond(axis: Sequence[Value], best: Value) -> float | None:
  """The next point of a grid's axis, by the same factor, if the best one lies at its edge."""
  if best is None or len(axis) < 2 or best not in (axis[0], axis[-1]):
    return None
  inner = axis[1] if best == axis[0] else axis[-2]
  assert inner is not None, "an axis of several points has numbers"
  return float(f"{best * best / inner:.3g}")


class Growth(NamedTuple):
  """The grids of an entry, one per setting, and how they were widened."""

  grids: dict[Setting, Grid]
  extensions: tuple[tuple[str, float], ...] = ()  # (axis, new point), the same at any setting


def grown(growth: Growth, best: Mapping[Setting, tuple[Value, float]], allowed: int) -> Growth:
  """Widens a setting's grid by one step wherever its best point lies at an edge of it.

  There are never more than `allowed` different extensions.
  """
  grids, made = dict(growth.grids), list(growth.extensions)
  for setting, (value, rate) in best.items():
    for axis, at in (("values", value), ("rates", rate)):
      line = getattr(grids[setting], axis)
      new = beyond(line, at)
      if new is None or ((axis, new) not in made and len(made) == allowed):
        continue
      made += [(axis, new)] if (axis, new) not in made else []
      grids[setting] = grids[setting]._replace(**{axis: tuple(sorted((*line, new)))})
  return Growth(grids, tuple(made))
