"""Where the time of a completion went, as a bar with a table."""

from collections.abc import Sequence

from offpolicy_rl.observe import catalogue, metrics
from offpolicy_rl.report import document
from offpolicy_rl.report.svg import number


def section(rows: Sequence[dict]) -> str:
  """HTML of the stages' seconds in the median step; "" if they are unknown."""
  seconds = metrics.stage_seconds(rows)
  total = sum(seconds.values())
  if not total:
    return ""
  parts = "".join(
    f'<i style="flex-grow:{value / total:.5f};background:var(--c{i})" title="{stage}"></i>'
    for i, (stage, value) in enumerate(seconds.items())
  )
  meaning = lambda stage: catalogue.METRICS[metrics.TRAIN][f"ticket/{stage}"].meaning
  body = [
    [stage, number(value), f"{value / total:.1%}", meaning(stage)]
    for stage, value in seconds.items()
  ]
  label = f"A completion's {number(total)} s, from the queue to the end of its step"
  head = ("stage", "seconds", "share", "what it is")
  return (
    f"<p class=soft>{label}; in <code>trace.json</code>, for ui.perfetto.dev, ticket by ticket.</p>"
    f'<div class=stages role=img aria-label="{label}">{parts}</div>{document.table(head, body)}'
  )
