"""Where the time of a completion went, as a bar with a table."""

from collections.abc import Sequence

from offpolicy_rl.observe import catalogue, metrics
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
  label = f"A completion's {number(total)} s, from the queue to the end of its step"
  return (
    f"<p class=soft>{label}; in <code>trace.json</code>, for ui.perfetto.dev, ticket by ticket.</p>"
    f'<div class=stages role=img aria-label="{label}">{parts}</div>{_legend(seconds)}'
  )


def _legend(seconds: dict[str, float]) -> str:
  """A table with the bar's colors, the seconds, and what the stages are."""
  total = sum(seconds.values())
  rows = "".join(
    f'<tr><th scope=row class=key><i style="background:var(--c{i})"></i> {stage}</th>'
    f"<td class=number>{number(value)}</td><td class=number>{value / total:.1%}</td>"
    f"<td>{catalogue.METRICS[metrics.TRAIN][f'ticket/{stage}'].meaning}</td></tr>"
    for i, (stage, value) in enumerate(seconds.items())
  )
  head = "<th scope=col>stage<th scope=col>seconds<th scope=col>share"
  head += '<th scope=col style="text-align:left">what it is'
  return f"<div class=scroll tabindex=0><table><thead><tr>{head}</thead><tbody>{rows}</table></div>"
