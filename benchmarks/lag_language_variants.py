"""Which part of an objective makes it bear lag? One change at a time, on two seeds; no tests.

  python -m benchmarks.lag_language_variants --minutes=30   goes on for so long, then the page
  python -m benchmarks.lag_language_variants --summary      only the page

The task, the model and the runs are those of benchmarks/lag_language.py; the seeds are not among
those that it reports. The variants are VARIANTS in benchmarks/lag_language_entries.py.
"""

import argparse
import os
import pathlib
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks import lag_language
from benchmarks.lag_language import PRIMARY_LAG, Job, Row, Study
from benchmarks.lag_language_entries import VARIANTS
from offpolicy_rl.losses import masked, ratios

ROWS = lag_language.RESULTS / "lag_language_variants.jsonl"
RATES = (1e-4, 3e-4)  # those at which the study reports `grpo_wide` and `shift`
SEEDS = (1001, 1002)
_COLUMNS = ("final pass@1", "mean over the run", "pass@64", "entropy, nats", "log pi / mu, nats")


def gated_regression(
  policy_logprobs: jax.Array,
  anchor_logprobs: jax.Array,
  log_ratios: jax.Array,
  advantages: jax.Array,
  loss_mask: jax.Array,
  *,
  beta: float,
  clip_low: float,
  clip_high: float,
) -> jax.Array:
  """Gradient of the regression without tokens that already left PPO's band along the residual.

    -sum_t m sg[gate (A - beta u)] lp,   gate = 0 where pi / mu > 1 + clip_high and A - beta u > 0,
    or pi / mu < 1 - clip_low and A - beta u < 0, else 1;   A with the shift

  Without the gate its gradient is that of functions.regression. lp, la [N, M]; u, A, the loss [N].
  """
  residual = jax.lax.stop_gradient(advantages - beta * log_ratios)[:, None]
  ratio = ratios.exp(ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask))
  left = jnp.where(residual > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
  return -masked.masked_sum(jnp.where(left, 0.0, residual) * policy_logprobs, loss_mask, -1)


def jobs() -> list[Job]:
  """Every variant, the lower rate first."""
  return [
    Job(entry.label, None, rate, PRIMARY_LAG, seed)
    for rate in RATES
    for seed in SEEDS
    for entry in VARIANTS
  ]


def page(rows: Sequence[Row]) -> str:
  """Markdown: variants down, a table per learning rate; means over the seeds, and the range."""
  hours = sum(row["seconds"] for row in rows) / 3600
  parts = [
    "# Variants of two objectives under lag, on a language model",
    f"Made by `python -m benchmarks.lag_language_variants --summary` from {len(rows)} runs, "
    f"{hours:.1f} hours of single cores: lag {PRIMARY_LAG}, seeds {SEEDS[0]} and {SEEDS[1]}, which "
    "the [study](lag_language.md) does not report. Mean of two seeds (lower to higher); nothing "
    "is tuned and no test is made.",
  ]
  for rate in RATES:
    lines = [f"| variant | {' | '.join(_COLUMNS)} |", "| --- |" + " --- |" * len(_COLUMNS)]
    for entry in VARIANTS:
      of_entry = [r for r in rows if (r["entry"], r["rate"]) == (entry.label, rate)]
      if of_entry:
        cells = zip(*map(_values, of_entry), strict=True)
        lines.append(f"| {entry.label} | {' | '.join(map(_cell, cells))} |")
    if any(row["rate"] == rate for row in rows):
      parts += [f"## Learning rate {rate:g}", "\n".join(lines)]
  return "\n\n".join(parts) + "\n"


def _values(row: Row) -> tuple[float, ...]:
  """In the order of _COLUMNS; the log-ratio of completions is a mean over the run."""
  final, drift = row["final"], statistics.fmean(row["curve"]["log_ratio"])
  return final["pass@1"], lag_language.score(row), final["pass@64"], final["entropy"], drift


def _cell(values: Sequence[float]) -> str:
  return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
  """Runs what is missing, then writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--summary", action="store_true", help="run nothing")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/lag_language"))
  parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="where rows are kept")
  arguments = parser.parse_args()
  study, folder = Study(), arguments.folder
  folder.mkdir(parents=True, exist_ok=True)
  rows = lambda: lag_language.read_rows(arguments.rows, study)
  if not arguments.summary:
    until = time.monotonic() + 60 * arguments.minutes
    workers = lag_language.Workers(arguments.workers, study, folder, until=until)
    add = lambda row: lag_language.add_row(arguments.rows, row, folder / "variants.lock")
    lag_language.run_missing(jobs(), workers, rows, add)
    workers.close()
  arguments.rows.with_suffix(".md").write_text(page(rows()), encoding="utf-8")


if __name__ == "__main__":
  main()
