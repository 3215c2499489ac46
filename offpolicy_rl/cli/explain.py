"""Prints objectives, and their induced targets for the rewards of a group.

  offpolicy-rl explain                                      every preset with its formula
  offpolicy-rl explain --objective=dapo                     one preset: source, keys
  offpolicy-rl explain --objective=oapl --rewards=0,0,1,1   its target, with --png=FILE as a picture

The completions of the group are assumed to be all that the sampler can produce, equally likely.
"""

import dataclasses
import pathlib

import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from offpolicy_rl import losses
from offpolicy_rl.losses import induced_target, reductions
from offpolicy_rl.observe import plots
from offpolicy_rl.system import output

# Sign of log E exp(A/beta) -> name and meaning of the regime.
_REGIMES = {1: "positive: pessimistic", 0: "boundary: exponential tilt", -1: "negative: sharper"}
_WIDEST = 1000  # columns of a table


def presets(known: list[losses.Choices], setting: reductions.Setting) -> None:
  """Prints every preset with its formula, and which presets coincide."""
  table = Table(box=box.SIMPLE)
  table.add_column("objective.name", no_wrap=True)
  table.add_column("loss (symbols: losses/choices.py)")
  for choices in sorted(known, key=lambda choices: choices.name):
    table.add_row(choices.name, choices.formula)
  console = output.console(soft_wrap=False)  # formulas have brackets
  console.print(table)
  for group in reductions.coinciding(known, setting):
    console.print(
      f"The same gradient with {_in_words(setting)}, up to a constant factor: "
      + ", ".join(name for name, _ in group)
    )


def _in_words(setting: reductions.Setting) -> str:
  updates = "one update" if setting.updates == 1 else f"{setting.updates} updates"
  return f"{updates} per batch" + (", on-policy" if setting.on_policy else "")


def card(choices: losses.Choices, known: list[losses.Choices], setting: reductions.Setting) -> None:
  """Prints an objective's source, the keys that are not at their defaults, and its simplest form.

  Also the presets (`known`) that have the same gradient.
  """
  console = output.console(soft_wrap=False)
  console.print(Text.assemble((choices.name, "bold"), f"   {choices.formula}"))
  console.print(f"source: {choices.source}")
  if choices.differs:
    console.print(f"differs: {choices.differs}")
  for field in losses.choices.OVERRIDABLE:
    value = getattr(choices, field.name)
    is_choice = field.name not in ("name", "group_size", "max_tokens")
    if is_choice and (value != field.default or field.name == "fn"):
      console.print(f"  --config.objective.{field.name}={value}")
  simple, factor = reductions.reduced(choices, setting)
  same = []
  if simple.fn != choices.fn or simple.weight != choices.weight:
    same.append(f"that of {reductions.in_words(simple)}")
  for other in known:
    other_simple, other_factor = reductions.reduced(other, setting)
    if other.name != choices.name and other_simple == simple:
      same.append(f"{factor / other_factor:.4g} times that of {other.name}")
  if same:
    console.print(f"With {_in_words(setting)} its gradient is " + ", ".join(same))


@dataclasses.dataclass(frozen=True)
class Target:
  """A policy and its distance from the sampler's."""

  name: str
  advantages: np.ndarray  # A per completion, in units of reward
  lam: float
  regime: int
  statistic: float
  ratios: np.ndarray  # pi / mu per completion
  kl: float  # KL(pi || mu), nats
  entropy: float
  reward: float
  ess: float
  temperature: float
  collapsed: bool = False


def explain(rewards: list[float], choices: losses.Choices) -> list[Target]:
  """Computes the objective's target, then those of four other baselines.

  Raises:
    ValueError: the objective is no regression on the log-ratio, or there is only one reward.
  """
  if choices.fn != "regression":
    raise ValueError(
      f"--objective: got {choices.name}, expected a regression on the log-ratio (fn = regression); "
      f"objective.fn = {choices.fn} has no temperature and so no induced target"
    )
  if len(rewards) < 2 or not np.all(np.isfinite(rewards)):
    raise ValueError(f"--rewards: got {rewards}, expected at least two finite numbers")
  values = np.asarray(rewards, np.float32)
  group = losses.LossInputs(
    policy_logprobs=None,
    sampler_logprobs=None,
    loss_mask=np.ones((len(values), 1), bool),
    rewards=values,
    group_ids=np.zeros(len(values), int),
  )
  centred = values - values.mean()
  boundary = (
    values
    - choices.beta * float(induced_target.regime_statistic(centred, choices.beta))
    - values.mean()
  )
  tables = {
    choices.name: np.asarray(losses.objective(choices).prepare(group).advantages),
    "mean - beta": centred + choices.beta,
    "mean": centred,
    "V*": boundary,
    "V* + beta/2": boundary - 0.5 * choices.beta,
  }
  return [_target(name, table, values, choices.beta) for name, table in tables.items()]


def _target(name: str, advantages: np.ndarray, rewards: np.ndarray, beta: float) -> Target:
  atol = 8 * float(np.finfo(np.float32).eps) * float(np.abs(rewards).max())
  target = induced_target.solve(advantages, beta, atol=atol)
  u = target.log_ratios
  return Target(
    name=name,
    advantages=advantages,
    lam=float(target.lam),
    regime=int(target.regime),
    statistic=float(target.regime_statistic),
    ratios=np.exp(np.asarray(u)),
    kl=float(induced_target.reverse_kl(u)),
    entropy=float(induced_target.entropy(u)),
    reward=float(induced_target.expected_reward(u, rewards)),
    ess=float(induced_target.effective_sample_fraction(u)),
    temperature=float(induced_target.effective_temperature(target, advantages, beta)),
    collapsed=bool(target.collapsed),
  )


def show(rewards: list[float], targets: list[Target], beta: float) -> None:
  """Prints both tables."""
  console = output.console(soft_wrap=False)
  induced, nominal = targets[0], targets[3]
  size = len(rewards)
  table = Table(title=f"Each completion (beta = {beta:g}, sampler: 1/{size} each)", box=box.SIMPLE)
  for column in ("completion", "reward", "A / beta", "induced pi", "pi / mu", "nominal pi"):
    table.add_column(column, justify="right")
  for i in np.argsort(-np.asarray(rewards), kind="stable"):
    table.add_row(
      str(i),
      f"{rewards[i]:g}",
      f"{induced.advantages[i] / beta:.3f}",
      f"{induced.ratios[i] / size:.4f}",
      f"{induced.ratios[i]:.3f}",
      f"{nominal.ratios[i] / size:.4f}",
    )
  _print_in_full(table)
  table = Table(title="The target, beside that of other baselines", box=box.SIMPLE)
  for column in ("baseline", "regime", "lambda", "reward", "KL", "entropy", "ESS", "T"):
    left = column in ("baseline", "regime")
    table.add_column(column, justify="left" if left else "right", no_wrap=True)
  for t in targets:
    regime = "winner takes all" if t.collapsed else _REGIMES[t.regime].split(":")[0]
    table.add_row(
      t.name,
      regime,
      f"{t.lam:.4g}",
      f"{t.reward:.4f}",
      f"{t.kl:.4f}",
      f"{t.entropy:.4f}",
      f"{t.ess:.3f}",
      f"{t.temperature:.4g}",
    )
  _print_in_full(table)
  console.print(
    f"log E exp(A/beta) = {induced.statistic:.4g}, so the regime is {_REGIMES[induced.regime]}.\n"
    "Of each target: expected reward, KL to the sampler and entropy (nats), effective sample size "
    "(fraction), T = temperature of the closest exponential tilt."
  )
  if induced.regime < 0:
    console.print("A negative regime can have several minima; chance decides which one is reached.")


def _print_in_full(table: Table) -> None:
  """Prints at the table's width: a narrow terminal wraps lines, but no number is cut."""
  console = output.console(soft_wrap=False)
  width = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
  console.width = max(console.width, width)
  console.print(table)


def draw(rewards: list[float], targets: list[Target], beta: float, path: pathlib.Path) -> None:
  """Draws the probability of every completion under each target, and pi/mu against reward.

  Raises:
    plots.MissingMatplotlibError: matplotlib is not installed.
  """
  figure, [[bars, curves]] = plots.panels(1, 2, (10, 4), width_ratios=(3, 2))
  order = np.argsort(np.asarray(rewards), kind="stable")
  places = np.arange(len(rewards))
  chosen = [targets[0], targets[3], targets[4]]
  colours = (plots.COLORS[0], plots.COLORS[5], plots.COLORS[1])
  for i, (target, colour) in enumerate(zip(chosen, colours, strict=True)):
    label = f"{target.name}: λ = {target.lam:.3g}"
    heights = target.ratios[order] / len(rewards)
    bars.bar(places + 0.27 * (i - 1), heights, 0.25, color=colour, label=label)
    curves.plot(
      np.asarray(rewards)[order], target.ratios[order], "o-", color=colour, label=target.name
    )
  bars.axhline(1 / len(rewards), color="black", lw=0.8, ls=":", label="sampler")
  bars.set_xticks(places, [f"{rewards[i]:g}" for i in order])
  bars.set(xlabel="completion, by reward", ylabel="probability")
  bars.set_title(f"induced targets, β = {beta:g}", fontsize=10)
  bars.legend(fontsize=8, frameon=False)
  curves.set(xlabel="reward", ylabel="π / μ")
  curves.set_title("how much more likely than under the sampler", fontsize=10)
  plots.save(figure, path)
