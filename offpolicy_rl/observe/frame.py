"""How a watched run looks: numbers, small curves, samplers, tickets, alarms. Reads nothing."""

import itertools
import math
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, progress

_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_CURVE, _SHORT_CURVE, _WIDE = 20, 10, 100  # characters, and from which width on
_SAMPLERS = 16  # lines
_SILENT_SECONDS = 15.0  # after which a learner or a sampler looks lost
_LATELY = 20  # rows, for alarms and the time left
_REGIMES = {"positive": "pessimistic", "boundary": "exponential", "negative": "sharper"}
# In how it stands: colour, words. "" = it goes on.
_ENDS = {
  "finished": ("green", "finished"),
  "stopped": ("yellow", "stopped; --resume goes on"),
  "failed": ("red", "failed; the learner's last lines say why"),
}


def of(
  status: types.RunStatus, newest: dict[str, dict], rows: list[types.MetricsRow], console: Console
) -> RenderableType:
  """A whole frame for a console; `newest`, `rows`: of `metrics.newest`, `types.News`."""
  blocks = _BLOCKS if console.encoding.startswith("utf") else _PLAIN_BLOCKS
  draw = lambda points: curve(points, blocks, _CURVE if console.width >= _WIDE else _SHORT_CURVE)
  parts = [_head(status, newest), _bar(status, newest, rows), _numbers(newest, rows, draw)]
  if regimes := _regimes(newest):
    parts.append(Text(regimes))
  if status.tickets:
    parts.append(Text(_tickets(status.tickets)))
  if status.samplers:
    parts.append(_samplers(status))
  return Group(*parts, *_alarms(rows))


def line(status: types.RunStatus, newest: dict[str, dict], rows: list[types.MetricsRow]) -> Text:
  """A frame's most important numbers, where there is no terminal."""
  train = newest.get(metrics.TRAIN)
  if train is None:
    return Text(f"{_phase(status, newest)}  samplers {len(status.samplers)}")
  shown = progress.Progress(status.num_steps)
  shown.heldout(newest.get(metrics.HELDOUT, {}).get("heldout/pass@1", math.nan))
  shown.sampler_rate(train["sampler/tokens_per_second"])
  text = shown.line(int(train["step"]), train, _seconds_left(status, train, rows))
  open_tickets = "  ".join(f"{name} {count}" for name, count in _open(status.tickets).items())
  return Text(f"{text}  samplers {len(status.samplers)}  tickets: {open_tickets or 'unknown'}")


def last_words(status: types.RunStatus, newest: dict[str, dict]) -> Text:
  """What became of a run."""
  color, words = _ENDS[status.ended]
  heldout = newest.get(metrics.HELDOUT, {})
  found = f", held-out pass@1 {heldout['heldout/pass@1']:.3f}" if heldout else ""
  done = f"{_updates(newest)} of {status.num_steps} steps{found}"
  return Text(f"{status.run_id}: {words} ({done})", color)


def _updates(newest: dict[str, dict]) -> int:
  return int(newest[metrics.TRAIN]["step"]) + 1 if metrics.TRAIN in newest else 0


def _phase(status: types.RunStatus, newest: dict[str, dict]) -> str:
  if status.ended:
    return _ENDS[status.ended][1]
  if metrics.TRAIN in newest:
    return "training" if _updates(newest) < status.num_steps else "last checkpoint and evaluation"
  if warm := newest.get(metrics.WARM_START):
    return f"warm start, step {warm['step'] + 1:.0f}, loss {warm['loss']:.3f}"
  return "starting"


def _head(status: types.RunStatus, newest: dict[str, dict]) -> Text:
  color = _ENDS.get(status.ended, ("cyan",))[0]
  head = Text.assemble(
    (status.run_id, "bold"), f"  {status.about}  ", (_phase(status, newest), color)
  )
  silent = time.time() - status.at
  if not status.ended and silent > _SILENT_SECONDS:  # false for nan: unknown
    head.append(f"  no sign of life from the learner for {silent:.0f} s", "red")
  return head


def _bar(status, newest: dict[str, dict], rows: list[types.MetricsRow]) -> RenderableType:
  done, train = _updates(newest), newest.get(metrics.TRAIN)
  seconds = _seconds_left(status, train, rows) if train and not status.ended else 0
  left = f"left {clock(seconds)}" if seconds else ""
  bar = ProgressBar(total=max(status.num_steps, 1), completed=done, width=40)
  table = Table.grid(padding=(0, 2))
  table.add_row(Text(f"step {done}/{status.num_steps}"), bar, Text(left))
  return table


def clock(seconds: float) -> str:
  """1:02:03 or 2:03."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _seconds_left(status, train: dict, rows: list[types.MetricsRow]) -> float:
  """By the pace of the last steps; the first one of a run compiles and tells nothing."""
  of_train = [row.values for row in rows if row.kind == metrics.TRAIN]
  lately = [metrics.pace(values)["seconds"] for values in of_train[1:][-_LATELY:]]
  return sum(lately) / max(len(lately), 1) * (status.num_steps - train["step"] - 1)


# ------------------------------------------------------------------ numbers and curves


def _numbers(newest: dict[str, dict], rows, draw: Callable[[list], str]) -> Table:
  """Two figures with their curves on each line."""
  table = Table.grid(padding=(0, 1))
  for _ in range(6):
    table.add_column(no_wrap=True)
  cells = [cell for figure in _figures(newest) for cell in _cells(*figure, rows, draw)]
  for six in itertools.batched(cells, 6):
    table.add_row(*six)
  return table


def _regimes(newest: dict[str, dict]) -> str:
  """Shares of the groups whose induced target is of each kind, where the objective has one."""
  train = newest.get(metrics.TRAIN, {})
  shares = {words: train.get(f"regime/{name}", 0) for name, words in _REGIMES.items()}
  found = ", ".join(f"{share:.0%} {words}" for words, share in shares.items() if share)
  return f"target of the groups: {found}" if found else ""


def _figures(newest: dict[str, dict]) -> list[tuple[str, str, str, str]]:
  """(label, its value as text, kind of row, what the curve shows) of everything shown."""
  train, heldout = newest.get(metrics.TRAIN, {}), newest.get(metrics.HELDOUT, {})
  number = lambda name, form: format(train[name], form) if name in train else "-"
  pace = metrics.pace(train) if train else {}
  of_pace = lambda name, form: format(pace[name], form) if pace else "-"
  pass_1 = f"{heldout['heldout/pass@1']:.3f}" if heldout else "-"
  lag = f"{train['lag/mean']:.1f} (max {train['lag/max']:.0f})" if train else "-"
  used = number("mfu", ".1%") if "mfu" in train else number("flops_per_second", ".1e")
  used += " flop/s" if train and "mfu" not in train else ""
  return [
    ("reward", number("reward", ".3f"), metrics.TRAIN, "reward"),
    ("held-out", pass_1, metrics.HELDOUT, "heldout/pass@1"),
    ("entropy", number("entropy", ".3f"), metrics.TRAIN, "entropy"),
    ("lag", lag, metrics.TRAIN, "lag/mean"),
    ("lambda", number("lambda_hat", ".4f"), metrics.TRAIN, "lambda_hat"),
    ("log-ratio", number("log_ratio/mean", ".3f"), metrics.TRAIN, "log_ratio/mean"),
    ("mismatch", number("mismatch/mean", ".1e"), metrics.TRAIN, "mismatch/mean"),
    ("largest", number("mismatch/max", ".1e"), metrics.TRAIN, "mismatch/max"),
    ("learner tok/s", of_pace("tokens_per_second", ",.0f"), metrics.TRAIN, "tokens_per_second"),
    (
      "sampler tok/s",
      number("sampler/tokens_per_second", ",.0f"),
      metrics.TRAIN,
      "sampler/tokens_per_second",
    ),
    ("learner waits", of_pace("waiting", ".0%"), metrics.TRAIN, "waiting"),
    ("utilisation", used, metrics.TRAIN, "mfu" if "mfu" in train else "flops_per_second"),
  ]


def _cells(label: str, value: str, kind: str, name: str, rows, draw) -> list[Text]:
  own = [row for row in rows if row.kind == kind]
  if name in ("tokens_per_second", "waiting"):
    points = [(row.step, metrics.pace(row.values)[name]) for row in own]
  else:
    points = [(row.step, row.values[name]) for row in own if name in row.values]
  # Before the warm start is step 0, too: the curve begins after it.
  if kind == metrics.HELDOUT:
    points = [(row.step, row.values[name]) for row in own if row.values.get("version", 0) >= 0]
  return [Text(label, "dim"), Text(value, "bold"), Text(draw(points), "cyan")]


def curve(points: list[tuple[int, float]], blocks: str = _BLOCKS, most: int = _CURVE) -> str:
  """Points (x, y) as a line of blocks; a place without a point looks as the one before."""
  points = [(x, y) for x, y in points if math.isfinite(y)]
  if len(points) < 2:
    return ""
  first, last = points[0][0], points[-1][0]
  width = min(most, len(points))
  places: list[list[float]] = [[] for _ in range(width)]
  for x, y in points:
    places[min(width - 1, (x - first) * width // max(last - first, 1))].append(y)
  means, mean = [], points[0][1]
  for place in places:
    mean = sum(place) / len(place) if place else mean
    means.append(mean)
  low, high = min(means), max(means)
  scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
  return "".join(blocks[round((mean - low) * scale)] for mean in means)


# ------------------------------------------------------------------ samplers, tickets, alarms


def _open(tickets: dict[str, int]) -> dict[str, int]:
  """Tickets that no step has taken: all of them, and where they are."""
  if not tickets:
    return {}
  queued, leased, waiting = (tickets[name] for name in ("queued", "out", "waiting"))
  return {"open": queued + leased + waiting, "queued": queued, "leased": leased, "done": waiting}


def _tickets(counts: dict[str, int]) -> str:
  now = ", ".join(f"{count} {name}" for name, count in _open(counts).items()).replace(",", ":", 1)
  so_far = ("taken", "expired", "returned", "reissued", "duplicates", "unknown", "replaced")
  ever = ", ".join(f"{counts[name]} {name}" for name in so_far if counts.get(name))
  return f"tickets: {now}" + (f"; so far {ever}" if ever else "")


def _samplers(status: types.RunStatus) -> Table:
  table = Table(box=None, padding=(0, 2), header_style="dim")
  table.add_column("sampler")
  for name in ("version", "tokens/s", "slots busy", "groups", "heartbeat"):
    table.add_column(name, justify="right")
  for sampler in status.samplers[:_SAMPLERS]:
    said = lambda name, s=sampler: f"{s.stats[name]:,.0f}" if name in s.stats else "-"
    lost = sampler.silent_seconds > _SILENT_SECONDS
    table.add_row(
      Text(sampler.name, "red" if sampler.stats.get("unlike") else ""),
      said("version"),
      said("tokens_per_second"),
      f"{said('slots_busy')}/{said('slots')}",
      said("groups"),
      Text(f"{sampler.silent_seconds:.1f} s ago", "red" if lost else ""),
    )
  if len(status.samplers) > _SAMPLERS:
    table.add_row(Text(f"and {len(status.samplers) - _SAMPLERS} more", "dim"))
  return table


def _alarms(rows: list[types.MetricsRow]) -> list[Text]:
  """The newest first; what is said of one depends on how long it has lasted."""
  found = []
  for name, meaning in progress.ALARMS.items():
    lately = [row for row in rows if row.kind == metrics.TRAIN and name in row.values][-_LATELY:]
    on = [row for row in lately if row.values[name]]
    if not on:
      continue
    lasts = len(on) >= progress.needed(name)
    text = f"alarm, step {on[-1].step + 1}, {len(on)} of the last {len(lately)}: "
    text += meaning if lasts else name.removeprefix("alarm/")
    found.append((on[-1].step, Text(text, "red" if lasts else "dim")))
  return [text for _, text in sorted(found, key=lambda pair: -pair[0])]
