"""Tables and plots of benchmarks/lag_lab.py: what was measured, nothing is run here."""

import json
import pathlib

import numpy as np

from offpolicy_rl.observe import plots
from offpolicy_rl.observe.plots import mean_and_half_width

FAMILIES = {
  "with importance ratios": ("grpo", "dapo", "decoupled_ppo", "cispo", "topr"),
  "without ratios": ("reinforce", "asymre", "copg", "oapl", "mean", "shift_1", "shift_1_auto"),
  "baselines and shifts": (
    "oapl_coupled",
    "oapl_coupled_loo",
    "shift_-1",
    "mean",
    "shift_0.5",
    "shift_1",
    "shift_2",
  ),
}
CURVES = ("grpo", "cispo", "reinforce", "oapl", "oapl_coupled", "mean", "shift_1")


def name_of(setting) -> str:
  """(16, True) -> "periodic 16"."""
  lag, periodic = setting
  return f"{'periodic' if periodic else 'fixed'} {lag}" if lag else "lag 0"


def table(reports: list[dict], which: str, field: str, digits: int = 3) -> str:
  """Markdown: objectives down, settings across, mean ± half of the 95 % interval."""
  settings = [row["setting"] for row in reports[0][which]]
  lines = [f"| objective | {' | '.join(name_of(s) for s in settings)} |"]
  lines.append("| --- |" + " --- |" * len(settings))
  for report in reports:
    cells = [mean_and_half_width(row[field]) for row in report[which]]
    text = " | ".join(f"{m:.{digits}f} ± {h:.{digits}f}" for m, h in cells)
    lines.append(f"| `{report['label']}` | {text} |")
  return "\n".join(lines)


def difference_table(reports: list[dict], which: str, field: str, base: str) -> str:
  """Markdown: objective minus base, paired by seed; bold where the 95 % interval excludes 0."""
  known = {r["label"]: r for r in reports}
  settings = [row["setting"] for row in reports[0][which]]
  lines = [f"| minus `{base}` | {' | '.join(name_of(s) for s in settings)} |"]
  lines.append("| --- |" + " --- |" * len(settings))
  for report in (r for r in reports if r["label"] != base):
    cells = []
    for row, other in zip(report[which], known[base][which], strict=True):
      gap, half = mean_and_half_width((np.array(row[field]) - np.array(other[field])).tolist())
      text = f"{gap:+.3f} ± {half:.3f}"
      cells.append(f"**{text}**" if abs(gap) > half else text)
    lines.append(f"| `{report['label']}` | {' | '.join(cells)} |")
  return "\n".join(lines)


def chosen_table(reports: list[dict]) -> str:
  """Markdown: what the tuning chose."""
  settings = [row["setting"] for row in reports[0]["tuned_per_lag"]]
  lines = [f"| objective | tuned | {' | '.join(map(name_of, settings))} | one for all lags |"]
  lines.append("| --- | --- |" + " --- |" * (len(settings) + 1))
  for report in reports:
    rows = [*report["tuned_per_lag"], report["one_setting"][0]]
    points = [
      f"{row['rate']:.2g}" if row["value"] is None else f"{row['value']:g}, {row['rate']:g}"
      for row in rows
    ]
    lines.append(
      f"| `{report['label']}` | {report['tuned'] or 'learning rate'} | {' | '.join(points)} |"
    )
  return "\n".join(lines)


def page(reports: list[dict], about: dict, name: str) -> str:
  """The results as Markdown."""
  seeds = len(about["study"]["seeds"])
  parts = [
    f"# Lag laboratory\n\nCommand: `{about['command']}`. Machine: {about['machine']}. "
    f"Seconds of work, summed over objectives: {about['seconds']:.0f}. Mean over {seeds} seeds "
    "± half of the 95 % interval. Final value = mean of the last four evaluations.\n\n"
    f"![score against lag]({name}_scores.png)\n\n![speed]({name}_speed.png)\n\n"
    f"![entropy]({name}_entropy.png)\n\n![curves]({name}_curves.png)"
  ]
  for which, title in (
    ("tuned_per_lag", "tuned for each lag"),
    ("one_setting", "one setting for all lags"),
  ):
    parts += [
      f"## Held-out pass@1, {title}",
      table(reports, which, "accuracy"),
      f"## Held-out pass@1, mean over the run (what was tuned for), {title}",
      table(reports, which, "mean_accuracy"),
      f"## Held-out pass@16, {title}",
      table(reports, which, "pass_at_16"),
      f"## Entropy of a completion (nats; 33.3 at the start), {title}",
      table(reports, which, "entropy", 2),
      f"## Entropy among right completions, {title}",
      table(reports, which, "entropy_correct", 2),
      f"## Collapse rate: seeds that end more than 20 % below their own best pass@1, {title}",
      table(reports, which, "collapsed", 2),
    ]
    if any(r["label"] == "shift_1" for r in reports):
      parts += [
        f"## Final pass@1 against the beta-shifted mean, kappa = 1, {title}",
        "Paired by seed; bold where the 95 % interval excludes 0.",
        difference_table(reports, which, "accuracy", "shift_1"),
        f"## Mean pass@1 over the run against the same, {title}",
        difference_table(reports, which, "mean_accuracy", "shift_1"),
      ]
  parts += [
    "## lambda(t) at the end of training, tuned for each lag",
    table(
      [r for r in reports if r["tuned"].startswith(("beta", "target")) and r["label"] != "copg"]
      or reports,
      "tuned_per_lag",
      "lambda_hat",
      4,
    ),
    "## What the tuning chose (value, learning rate)",
    chosen_table(reports),
  ]
  return "\n\n".join(parts) + "\n"


def against_lag(reports: list[dict], field: str, title: str, path: pathlib.Path) -> None:
  """Final value against lag: fixed above, periodic below, one column per family."""
  known = {r["label"]: r for r in reports}
  figure, axes = plots.panels(2, len(FAMILIES), (13, 7), sharex=True, sharey=True)
  for column, (family, labels) in enumerate(FAMILIES.items()):
    shown = [(label, c) for label, c in zip(labels, plots.COLORS, strict=False) if label in known]
    for axis, periodic in zip(axes[:, column], (False, True), strict=True):
      for label, color in shown:
        _line(axis, known[label]["tuned_per_lag"], periodic, field, label, color)
    axes[0, column].set_title(family, fontsize=10)
    axes[0, column].legend(fontsize=8, frameon=False, loc="lower left")
    axes[0, column].set_xlabel("")
    axes[1, column].set_xlabel("lag (updates)")
  axes[0, 0].set_ylabel(f"{title}\nfixed lag")
  axes[1, 0].set_ylabel(f"{title}\nperiodic lag")
  plots.save(figure, path)


def _line(axis, rows: list[dict], periodic: bool, field: str, label: str, color: str) -> None:
  """One objective's final values against lag, which is 0 in both rows of plots."""
  rows = [r for r in rows if r["setting"][1] == periodic or not r["setting"][0]]
  lags = [r["setting"][0] for r in rows]
  values = np.array([mean_and_half_width(r[field]) for r in rows])
  places = np.log2(np.maximum(lags, 1)) + (0 if min(lags) else 1) * (np.array(lags) > 0)
  axis.plot(places, values[:, 0], "o-", color=color, label=label, ms=3.5, lw=1.4)
  axis.fill_between(
    places, values[:, 0] - values[:, 1], values[:, 0] + values[:, 1], color=color, alpha=0.12
  )
  axis.set_xticks(places, [str(lag) for lag in lags])


def curves(reports: list[dict], every: int, path: pathlib.Path) -> None:
  """Held-out pass@1 and entropy against step, one column per fixed lag, tuned for each lag."""
  known = {r["label"]: r for r in reports}
  settings = [row["setting"] for row in reports[0]["tuned_per_lag"] if not row["setting"][1]]
  size = (3 * len(settings) + 1, 5.5)
  figure, axes = plots.panels(2, len(settings), size, sharex=True, sharey="row")
  for column, setting in enumerate(settings):
    for label, color in zip(CURVES, plots.COLORS, strict=False):
      if label not in known:
        continue
      row = next(r for r in known[label]["tuned_per_lag"] if r["setting"] == setting)
      for axis, field in zip(axes[:, column], ("accuracy", "entropy"), strict=True):
        line = row["curves"][field]
        axis.plot(every * np.arange(len(line)), line, color=color, label=label, lw=1.3)
    axes[0, column].set_title(name_of(setting), fontsize=10)
    axes[1, column].set_xlabel("step")
  axes[0, 0].set_ylabel("held-out pass@1")
  axes[1, 0].set_ylabel("entropy, nats")
  axes[0, 0].legend(fontsize=7, frameon=False)
  plots.save(figure, path)


def rounded(x):
  """Nested lists and dicts with floats of four digits: float32 values print short."""
  if isinstance(x, dict):
    return {k: rounded(v) for k, v in x.items()}
  if isinstance(x, list):
    return [rounded(v) for v in x]
  return round(x, 4) if isinstance(x, float) else x


def write(reports: list[dict], about: dict, folder: pathlib.Path, name: str) -> None:
  """NAME.json, NAME.md and three plots."""
  from benchmarks.lag_training import EVERY

  for report in reports:  # curves of one set of runs are enough
    for row in report["one_setting"]:
      row.pop("curves", None)
  kept = rounded([{k: v for k, v in report.items() if k != "tuning"} for report in reports])
  text = json.dumps({"about": about, "reports": kept}).replace('{"label"', '\n{"label"')
  (folder / f"{name}.json").write_text(text + "\n")
  (folder / f"{name}.md").write_text(page(reports, about, name))
  against_lag(reports, "accuracy", "held-out pass@1", folder / f"{name}_scores.png")
  against_lag(reports, "mean_accuracy", "mean pass@1 over the run", folder / f"{name}_speed.png")
  against_lag(reports, "entropy", "entropy, nats", folder / f"{name}_entropy.png")
  curves(reports, EVERY, folder / f"{name}_curves.png")
  print(table(reports, "tuned_per_lag", "accuracy"))
  print(f"results: {folder / name}.md, .json, _scores.png, _speed.png, _entropy.png, _curves.png")
