"""Who sampled what: a table of a run's samplers."""

import collections
import itertools
import math
from collections.abc import Sequence

from offpolicy_rl.report import document

_SHOWN = 64  # samplers, those with the most completions
_MEANS = {
  "reward": "reward",
  "length": "tokens",
  "entropy": "entropy, nats",
  "log_ratio": "|log-ratio|, nats",
  "mismatch": "mismatch, nats",
}


def table(rows: Sequence[dict]) -> str:
  """HTML: means over all completions of each sampler; "" where rows don't tell them apart."""
  count, sums, weights = collections.Counter(), collections.Counter(), collections.Counter()
  unlike = collections.Counter(name for row in rows for name in row.get("sampler/unlike", ()))
  for row, name in itertools.product(rows, _MEANS):
    completions = row.get("sampler/completions", {})
    values = row.get(f"sampler/{name}", {})
    known = {sampler: x for sampler, x in values.items() if math.isfinite(x)}
    sums.update({(sampler, name): x * completions[sampler] for sampler, x in known.items()})
    weights.update({(sampler, name): completions[sampler] for sampler in known})
  for row in rows:
    count.update(row.get("sampler/completions", {}))
  mean = lambda sampler, name: (
    f"{sums[sampler, name] / weights[sampler, name]:.4g}" if weights[sampler, name] else ""
  )
  body = [
    [sampler, f"{n:,}", *(mean(sampler, name) for name in _MEANS), f"{unlike[sampler]:,}"]
    for sampler, n in count.most_common(_SHOWN)
  ]
  head = ("sampler", "completions", *_MEANS.values(), "steps in which it was unlike the others")
  return document.table(head, body)
