"""The keys that differ between a run and configs/base.py, or between runs."""

import html
import json
from collections.abc import Sequence

from offpolicy_rl.config import text
from offpolicy_rl.report import document, runs

_MISSING = "missing"


def changes(config: dict) -> list[tuple[str, ...]]:
  """(key, base's value, the run's), as text."""
  return differences([runs.keys(text.base().to_dict()), runs.keys(config)])


def differences(flat: Sequence[dict]) -> list[tuple[str, ...]]:
  """(key, value in each) as text, of every key whose values differ, by name."""
  rows = []
  for key in sorted(set().union(*flat)):
    values = [repr(keys[key]) if key in keys else _MISSING for keys in flat]
    if len(set(values)) > 1:
      rows.append((key, *values))
  return rows


def section(config: dict) -> str:
  """HTML with the changed keys, and with all keys folded."""
  rows = changes(config)
  every = html.escape(json.dumps(config, indent=2, ensure_ascii=False))
  table = document.table(
    ("key", "base", "this run"), rows, empty="Every key is as in configs/base.py.", code=True
  )
  return f"{table}<details><summary>every key</summary><pre><code>{every}</code></pre></details>"
