"""A table of a run's samplers: number and means of their completions."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from offpolicy_rl.observe import catalogue, metrics
from offpolicy_rl.report import document

_MAX_ROWS = 64  # the samplers with the most completions
_MEANS = ("reward", "length", "entropy", "log_ratio", "mismatch")
_OF_EPISODES = ("seconds_world", "seconds_queue", "seconds_model")


def table(rows: Sequence[dict]) -> str:
  """HTML of means over all completions of each sampler; "" if the rows have none by sampler."""
  count, sums, weights, unlike = Counter(), Counter(), Counter(), Counter()
  rates: dict[str, list[float]] = {}
  for row in rows:
    completions = row.get("sampler/completions", {})
    count.update(completions)
    unlike.update(list(row.get("sampler/unlike", ())))
    for sampler, rate in row.get("sampler/rates", {}).items():
      rates.setdefault(sampler, []).append(rate)
    for name in (*_MEANS, *_OF_EPISODES):
      values = row.get(f"sampler/{name}", {}).items()
      known = {sampler: value for sampler, value in values if math.isfinite(value)}
      sums.update({(s, name): value * completions[s] for s, value in known.items()})
      weights.update({(s, name): completions[s] for s in known})
  means = [*_MEANS, *(n for n in _OF_EPISODES if any((s, n) in weights for s in count))]
  mean = lambda *key: f"{sums[key] / weights[key]:.4g}" if weights[key] else ""
  rate = lambda sampler: f"{statistics.fmean(rates[sampler]):,.4g}" if sampler in rates else ""
  body = [
    [
      sampler,
      f"{n:,}",
      rate(sampler),
      *(mean(sampler, name) for name in means),
      f"{unlike[sampler]:,}",
    ]
    for sampler, n in count.most_common(_MAX_ROWS)
  ]
  units = [catalogue.METRICS[metrics.TRAIN][f"sampler/{name}"].unit for name in means]
  title = lambda name, unit: name if name == unit else f"{name.replace('_', '-')}, {unit}"
  heads = list(map(title, means, units))
  head = ("sampler", "completions", "tokens/s", *heads, "steps in which it was unlike the others")
  return document.table(head, body)
