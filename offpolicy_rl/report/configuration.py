"""What a run's configuration changes, and where runs differ."""

import html
import json
from collections.abc import Sequence

from offpolicy_rl.config import text
from offpolicy_rl.report import runs

_ABSENT = object()


def changes(config: dict) -> list[tuple[str, str, str]]:
  """(key, base's value, the run's), as text."""
  base, own = runs.keys(text.base().to_dict()), runs.keys(config)
  return differences([base, own])


def differences(flat: Sequence[dict]) -> list[tuple[str, ...]]:
  """(key, value in each) as text, of every key in which they are not all the same, by name."""
  found = []
  for key in sorted(set().union(*flat)):
    values = [keys.get(key, _ABSENT) for keys in flat]
    if any(value != values[0] for value in values):
      found.append((key, *map(_text, values)))
  return found


def _text(value) -> str:
  return "not there" if value is _ABSENT else repr(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of text that may come from anywhere; the first column names the rows."""
  cells = lambda row: "".join(f"<td><code>{html.escape(cell)}</code></td>" for cell in row[1:])
  body = "".join(f"<tr><th scope=row>{html.escape(row[0])}</th>{cells(row)}</tr>" for row in rows)
  names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
  return (
    f'<div class="scroll" tabindex="0"><table class="settings"><thead><tr>{names}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def section(config: dict) -> str:
  """The changed keys, and all of them folded."""
  found = changes(config)
  if not found:
    told = "<p class=soft>Every key is as in configs/base.py.</p>"
  else:
    told = f"<p class=soft>Where this run differs from configs/base.py ({len(found)} keys):</p>"
    told += table(("key", "base", "this run"), found)
  whole = html.escape(json.dumps(config, indent=2, ensure_ascii=False))
  return f"{told}<details><summary>every key</summary><pre><code>{whole}</code></pre></details>"
