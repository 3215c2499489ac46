"""A table of a run's samplers: how many completions each made, and what they are like."""

import math
from collections import Counter
from collections.abc import Sequence

from offpolicy_rl.observe import catalogue, metrics
from offpolicy_rl.report import document

_MAX_ROWS = 64  # samplers, those with the most completions
_MEANS = ("reward", "length", "entropy", "log_ratio", "mismatch")


def table(rows: Sequence[dict]) -> str:
  """HTML: means over all completions of each sampler; "" where rows don't tell them apart."""
  count, sums, weights, unlike = Counter(), Counter(), Counter(), Counter()
  for row in rows:
    completions = row.get("sampler/completions", {})
    count.update(completions)
    unlike.update(list(row.get("sampler/unlike", ())))
    for name in _MEANS:
      values = row.get(f"sampler/{name}", {}).items()
      known = {sampler: value for sampler, value in values if math.isfinite(value)}
      sums.update({(of, name): value * completions[of] for of, value in known.items()})
      weights.update({(of, name): completions[of] for of in known})
  mean = lambda *key: f"{sums[key] / weights[key]:.4g}" if weights[key] else ""
  body = [
    [sampler, f"{n:,}", *(mean(sampler, name) for name in _MEANS), f"{unlike[sampler]:,}"]
    for sampler, n in count.most_common(_MAX_ROWS)
  ]
  units = [catalogue.METRICS[metrics.TRAIN][f"sampler/{name}"].unit for name in _MEANS]
  title = lambda name, unit: name if name == unit else f"{name.replace('_', '-')}, {unit}"
  heads = list(map(title, _MEANS, units))
  head = ("sampler", "completions", *heads, "steps in which it was unlike the others")
  return document.table(head, body)
