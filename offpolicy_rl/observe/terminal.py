"""Shows a run on a terminal: a line per step, or a dashboard for `watch`. Reads no files."""

import collections
import itertools
import math
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from offpolicy_rl import types
from offpolicy_rl.observe import catalogue, charts, metrics
from offpolicy_rl.system import output

LINE_SECONDS = 5.0  # between lines if the output is no terminal
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_CURVE, _SHORT_CURVE = 20, 10  # characters
_WIDE, _NARROW = 100, 76  # widths from which curves are long, and from which there are any
_MAX_SAMPLERS = 16  # lines
# Columns of samplers on wide terminals -> format.
_MEASURED = {
  "reward": ".3f",
  "length": ",.0f",
  "entropy": ".2f",
  "mismatch": ".1e",
  "seconds_world": ".2f",
  "seconds_queue": ".2f",
  "seconds_model": ".2f",
  "restarts": ".0f",
}
_BAR, _LEAST_SHARE = 60, 0.005  # characters; share from which a stage is in the legend
_STAGE_COLORS = ("blue", "cyan", "yellow", "green", "magenta", "red", "white", "bright_blue")
_SILENT_SECONDS = 15.0  # after which a learner or sampler is shown as lost
_RECENT = 20  # rows for alarms and for the time left
_ENDS = {  # RunStatus.ended -> colour, words
  "finished": ("green", "finished"),
  "stopped": ("yellow", "stopped; --resume goes on"),
  "failed": ("red", "failed; see the learner's last lines"),
}
Newest = dict[str, dict[str, float]]  # kind of row -> name -> newest value, as of metrics.newest


def clock(seconds: float) -> str:
  """Formats a duration as 1:02:03 or 2:03; NaN as -:--."""
  if math.isnan(seconds):
    return "-:--"
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def seconds_left(rows: Sequence[types.MetricsRow], num_steps: int) -> float:
  """Estimates from the last steps, without the first, which compiles; NaN = unknown."""
  train = [row for row in rows if row.kind == metrics.TRAIN]
  steps = num_steps - train[-1].step - 1 if train else num_steps
  paces = [row.values["learner/seconds"] for row in train[1:][-_RECENT:]]
  return sum(paces) / len(paces) * steps if paces else math.nan if steps else 0.0


def _value(newest: Newest, metric: charts.KeyMetric) -> str:
  value = newest.get(metric.kind, {}).get(metric.name)
  return "-" if value is None else format(value, metric.format)


def step_line(newest: Newest, num_steps: int, left: float) -> str:
  """Steps done, time left and the key metrics, the important ones first."""
  values = [f"{m.label} {_value(newest, m)}" for m in charts.KEY_METRICS if m.in_line]
  return f"step {_updates(newest)}/{num_steps}  left {clock(left)}  {'  '.join(values)}"


def first_figures(line: str, width: int) -> str:
  """The metrics of `step_line` that fit into `width` characters; at least one."""
  figures = line.split("  ")
  while len(figures) > 1 and len("  ".join(figures)) > width:
    figures.pop()
  return "  ".join(figures)


def phase(newest: Newest, num_steps: int) -> str:
  """The phase of a run, from its rows."""
  if metrics.TRAIN in newest:
    return "training" if _updates(newest) < num_steps else "last checkpoint and evaluation"
  if warm := newest.get(metrics.WARM_START):
    return f"warm start, step {warm['step'] + 1:.0f}, loss {warm['loss']:.3f}"
  return "starting"


def _updates(newest: Newest) -> int:
  return int(newest[metrics.TRAIN]["step"]) + 1 if metrics.TRAIN in newest else 0


class Lines:
  """Lines that are redrawn in place, or printed at intervals if the output is no terminal."""

  def __init__(self, console: Console | None, seconds: float):
    """`seconds`: interval at which lines are printed if the output is no terminal."""
    self._console, self._seconds = console or output.console(), seconds
    self._live: Live | None = None
    self._printed = -math.inf

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    self._console.print(Text(text))

  def show(self, lines: Sequence[str], *, last: bool = False) -> None:
    """Replaces the lines; `last`: prints them whatever the interval."""
    now = time.monotonic()
    if self._console.is_terminal:
      if self._live is None:
        self._live = Live(console=self._console, refresh_per_second=4)
        self._live.start()
      width = self._console.width
      fitting = "\n".join(first_figures(line, width) for line in lines)
      self._live.update(Text(fitting, overflow="ellipsis", no_wrap=True))
    elif last or now - self._printed >= self._seconds:
      self._printed = now
      for line in lines:
        self.say(line)

  def stop(self) -> None:
    """Leaves the last lines on the screen."""
    if self._live is not None:
      self._live.stop()
      self._live = None


class Progress:
  """Shows a learner's newest step, its evaluations, and lasting alarms."""

  def __init__(self, num_steps: int, console: Console | None = None):
    self._lines, self._num_steps = Lines(console, LINE_SECONDS), num_steps
    self._newest: Newest = {}
    self._train: list[types.MetricsRow] = []  # the last rows
    self._alarms: collections.Counter[str] = (
      collections.Counter()
    )  # consecutive steps; each is reported once
    self.say, self.stop = self._lines.say, self._lines.stop

  def row(self, kind: str, step: int, row: dict) -> None:
    """Shows a new row of metrics.jsonl."""
    if metrics.is_of_training(row):
      self._newest[kind] = row | metrics.derived(row) | {"step": step}
    if kind == metrics.TRAIN:
      self._train = [*self._train, types.MetricsRow(kind, step, self._newest[kind])][-_RECENT - 1 :]
      self._say_alarms(step, row)
      left = seconds_left(self._train, self._num_steps)
      line = step_line(self._newest, self._num_steps, left)
      self._lines.show([line], last=step + 1 == self._num_steps)
    elif kind == metrics.WARM_START and (step + 1) % 50 == 0:
      self.say(f"warm start {step + 1}: loss {row['loss']:.3f}")
    elif kind == metrics.HELDOUT:
      self._say_evaluation(row)

  def _say_evaluation(self, row: dict) -> None:
    if row["phase"] != "during":
      most = f", pass@{row['heldout/k']} {row['heldout/pass@k']:.3f}"
      self.say(
        f"held-out {row['phase']}: greedy {row['heldout/greedy']:.3f}, "
        f"pass@1 {row['heldout/pass@1']:.3f} ± {row['heldout/pass@1_stderr']:.3f}"
        f"{most if row['heldout/k'] > 1 else ''} ({row['heldout/problems']} problems)"
        + "".join(f", {task} {share:.3f}" for task, share in metrics.of_tasks(row).items())
      )
    if row["heldout/verifier_failures"]:
      self.say(
        f"held-out {row['phase']}: verifier, judge or environment failed on "
        f"{row['heldout/verifier_failures']} completions, which count as wrong; the samplers' logs "
        "(sampler-*.log in the run directory) say why"
      )

  def _say_alarms(self, step: int, row: dict) -> None:
    for alarm in catalogue.ALARMS:
      name, steps = alarm.name, alarm.alarm_steps
      if name in row and self._alarms[name] < steps:
        self._alarms[name] = self._alarms[name] + 1 if row[name] else 0
        if self._alarms[name] == steps:
          self.say(f"alarm, steps {step - steps + 2} to {step + 1}: {alarm.alarm}")


# ------------------------------------------------------------------ a watched run


def dashboard(
  status: types.RunStatus, newest: Newest, rows: list[types.MetricsRow], console: Console
) -> RenderableType:
  """Progress, key metrics with small curves, regimes, tickets, samplers and alarms of a run."""
  blocks = _BLOCKS if console.encoding.startswith("utf") else _ASCII_BLOCKS
  length = _CURVE if console.width >= _WIDE else _SHORT_CURVE
  draw = lambda points: curve(points, blocks, length) if console.width >= _NARROW else ""
  parts = [_head(status, newest), _bar(status, newest, rows), _key_metrics(newest, rows, draw)]
  if regimes := _regimes(newest):
    parts.append(Text(regimes))
  if status.tickets:
    parts.append(Text(_tickets(status.tickets)))
  parts += _stages(rows, console)
  if episode := _episode(newest.get(metrics.TRAIN, {})):
    parts.append(Text(episode))
  if status.samplers:
    parts.append(_samplers(status, wide=console.width >= _WIDE))
  return Group(*parts, *_alarms(rows))


def line(status: types.RunStatus, newest: Newest, rows: list[types.MetricsRow]) -> Text:
  """The key metrics of a watched run in a line, for an output that is no terminal."""
  if metrics.TRAIN not in newest:
    return Text(f"{_phase(status, newest)}  samplers {len(status.samplers)}")
  text = step_line(newest, status.num_steps, seconds_left(rows, status.num_steps))
  tickets = "  ".join(f"{name} {count}" for name, count in _open_tickets(status.tickets).items())
  return Text(f"{text}  samplers {len(status.samplers)}  tickets: {tickets or 'unknown'}")


def ending(status: types.RunStatus, newest: Newest) -> Text:
  """A line that says how a run ended."""
  color, words = _ENDS[status.ended]
  heldout = newest.get(metrics.HELDOUT, {})
  accuracy = f", held-out pass@1 {heldout['heldout/pass@1']:.3f}" if heldout else ""
  done = f"{_updates(newest)} of {status.num_steps} steps{accuracy}"
  return Text(f"{status.run_id}: {words} ({done})", color)


def _phase(status: types.RunStatus, newest: Newest) -> str:
  return _ENDS[status.ended][1] if status.ended else phase(newest, status.num_steps)


def _head(status: types.RunStatus, newest: Newest) -> Text:
  color = _ENDS.get(status.ended, ("cyan",))[0]
  head = Text.assemble(
    (status.run_id, "bold"), f"  {status.about}  ", (_phase(status, newest), color)
  )
  silent = time.time() - status.at
  if not status.ended and silent > _SILENT_SECONDS:  # False for nan
    head.append(f"  nothing from the learner for {silent:.0f} s", "red")
  return head


def _bar(status: types.RunStatus, newest: Newest, rows: list[types.MetricsRow]) -> Table:
  done, left = _updates(newest), 0 if status.ended else seconds_left(rows, status.num_steps)
  bar = ProgressBar(total=max(status.num_steps, 1), completed=done, width=40)
  table = Table.grid(padding=(0, 2))
  words = f"left {clock(left)}" if left > 0 else ""
  table.add_row(Text(f"step {done}/{status.num_steps}"), bar, Text(words))
  return table


def _key_metrics(newest: Newest, rows, draw: Callable[[list], str]) -> Table:
  table = Table.grid(padding=(0, 1))
  for _ in range(6):
    table.add_column(no_wrap=True)
  cells = []
  for kind, name, metric in ((m.kind, m.name, m) for m in charts.KEY_METRICS):
    values = [(row.step, row.values) for row in rows if row.kind == kind]
    values = [(step, v) for step, v in values if metrics.is_of_training(v)]
    points = draw([(step, v[name]) for step, v in values if name in v])
    text = _value(newest, metric)
    if name == "lag/mean" and "lag/max" in newest.get(kind, {}):
      text += f" (max {newest[kind]['lag/max']:.0f})"
    cells += [Text(metric.label, "dim"), Text(text, "bold"), Text(points, "cyan")]
  for six in itertools.batched(cells, 6):
    table.add_row(*six)
  return table


def _regimes(newest: Newest) -> str:
  """Shares of groups by regime; "" if the objective has no induced target."""
  train = newest.get(metrics.TRAIN, {})
  [chart] = [chart for chart in charts.CHARTS if chart.gauge == "regime_ratio"]
  shares = {words: train.get(name, 0) for words, name in chart.lines.items()}
  text = ", ".join(f"{share:.0%} {words}" for words, share in shares.items() if share)
  return f"target of the groups: {text}" if text else ""


def curve(points: list[tuple[int, float]], blocks: str = _BLOCKS, most: int = _CURVE) -> str:
  """Draws points (x, y) as a line of blocks; gaps repeat the block before."""
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


def _open_tickets(tickets: dict[str, int]) -> dict[str, int]:
  """Number of tickets that no step has taken, in all and by state."""
  if not tickets:
    return {}
  queued, leased, done = (tickets[name] for name in ("queued", "out", "waiting"))
  return {"open": queued + leased + done, "queued": queued, "leased": leased, "done": done}


def _tickets(counts: dict[str, int]) -> str:
  total, *parts = [f"{count} {name}" for name, count in _open_tickets(counts).items()]
  events = ("taken", "expired", "returned", "reissued", "duplicates", "unknown", "replaced")
  so_far = ", ".join(f"{counts[name]} {name}" for name in events if counts.get(name))
  return f"tickets: {total}: {', '.join(parts)}" + (f"; so far {so_far}" if so_far else "")


def _stages(rows: list[types.MetricsRow], console: Console) -> list[Text]:
  """A bar of where the time of recent completions went, with its legend; [] if unknown."""
  recent = [row.values for row in rows if row.kind == metrics.TRAIN and "ticket/use" in row.values]
  seconds = metrics.stage_seconds(recent[-_RECENT:])
  total = sum(seconds.values())
  if not total:
    return []
  bar, legend = Text(), Text(f"a completion's {total:.3g} s: ")
  width = _BAR if console.width >= _WIDE else _BAR // 2
  block = "█" if console.encoding.startswith("utf") else ""
  end = 0.0
  for stage, color in zip(types.STAGES, _STAGE_COLORS, strict=True):
    share = seconds.get(stage, 0.0) / total
    begin, end = end, end + share
    length = round(end * width) - round(begin * width)
    bar.append((block or stage[0]) * length, color)
    if share >= _LEAST_SHARE:
      legend.append(f"{stage} {share:.0%}  ", color)
  return [legend, bar]


def _episode(train: dict) -> str:
  """Where the time of an episode went; "" if a completion is one turn."""
  [chart] = [chart for chart in charts.CHARTS if chart.gauge == "episode_seconds"]
  seconds = {part: train.get(name, 0.0) for part, name in chart.lines.items()}
  if not (total := sum(seconds.values())):
    return ""
  parts = "  ".join(f"{name} {value / total:.0%}" for name, value in seconds.items())
  return f"an episode's {total:.3g} s: {parts}"


def _samplers(status: types.RunStatus, *, wide: bool) -> Table:
  table = Table(box=None, padding=(0, 2 if wide else 1), header_style="dim")
  table.add_column("sampler")
  measured = [name for name in _MEASURED if wide and any(name in s.stats for s in status.samplers)]
  for name in ("version", "tokens/s", "slots busy", "groups", *measured, "heartbeat"):
    table.add_column(name.replace("seconds_", "s in "), justify="right")
  for sampler in status.samplers[:_MAX_SAMPLERS]:
    number = lambda name, stats=sampler.stats, form=",.0f": (
      format(stats[name], form) if name in stats else "-"
    )
    lost = sampler.silent_seconds > _SILENT_SECONDS
    table.add_row(
      Text(sampler.name, "red" if sampler.stats.get("unlike") else ""),
      number("version"),
      number("tokens_per_second"),
      f"{number('slots_busy')}/{number('slots')}",
      number("groups"),
      *(number(name, form=_MEASURED[name]) for name in measured),
      Text(f"{sampler.silent_seconds:.1f} s ago", "red" if lost else ""),
    )
  if len(status.samplers) > _MAX_SAMPLERS:
    table.add_row(Text(f"and {len(status.samplers) - _MAX_SAMPLERS} more", "dim"))
  return table


def _alarms(rows: list[types.MetricsRow]) -> list[Text]:
  """Lines for active alarms, the newest first; with advice once an alarm has lasted."""
  alarms = []
  for alarm in catalogue.ALARMS:
    name = alarm.name
    recent = [r for r in rows if r.kind == metrics.TRAIN and name in r.values][-_RECENT:]
    on = [row for row in recent if row.values[name]]
    if on:
      lasts = len(on) >= alarm.alarm_steps
      text = f"alarm, step {on[-1].step + 1}, {len(on)} of the last {len(recent)}: "
      text += alarm.alarm if lasts else name.removeprefix("alarm/")
      alarms.append((on[-1].step, Text(text, "red" if lasts else "dim")))
  return [text for _, text in sorted(alarms, key=lambda pair: -pair[0])]
