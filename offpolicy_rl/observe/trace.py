"""RUN/trace.json: the timelines of some tickets and the learner's steps, for ui.perfetto.dev.

Trace Event Format, whose closing bracket may be missing, so that the file can grow. All times are
of the learner's clock.
"""

import contextlib
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence

from offpolicy_rl import types
from offpolicy_rl.observe import metrics

FILE = "trace.json"
_MOST = 8  # tickets of a step
_LEARNER = "learner"
_AT_LEARNER = ("lease", "queue", "use")  # the stages that a ticket spends there


class Trace:
  """Adds spans of every `every`-th step; what does not fit on the disk is dropped."""

  def __init__(self, run_dir: pathlib.Path, every: int):
    """`every`: 0 = never."""
    self._path, self._every = run_dir / FILE, every
    self._named: set[str] = set()  # processes

  def step(self, step: int, timelines: Sequence[types.Timeline], row: Mapping[str, float]) -> None:
    """Adds a step that is over now, with a few of its tickets; `row`: its metrics."""
    if not self._every or step % self._every:
      return
    stride = -(-len(timelines) // _MOST) or 1
    events = [event for timeline in timelines[::stride] for event in self._ticket(step, timeline)]
    end = max((timeline.times[-1] for timeline in timelines), default=math.nan)
    events += self._learner(step, end, row)
    with contextlib.suppress(OSError):
      beginning = "" if self._path.exists() else "[\n"
      with self._path.open("a", encoding="utf-8") as file:
        file.write(beginning + "".join(f"{json.dumps(event)},\n" for event in events))

  def _learner(self, step: int, end: float, row: Mapping[str, float]) -> Iterable[dict]:
    """The parts of a step, one after the other, the last of which ends at `end`."""
    seconds = [row.get(name, 0.0) for name in metrics.TIMES]
    if not math.isfinite(end):
      return
    yield from self._process(_LEARNER)
    begin = end - sum(seconds)
    edges = [_micro(edge) for edge in itertools.accumulate(seconds, initial=begin)]
    parts = zip(("waiting", "update", "publishing"), itertools.pairwise(edges), strict=True)
    for name, (start, stop) in parts:
      yield {
        **{"ph": "X", "name": name, "cat": "learner", "pid": _number(_LEARNER), "tid": 0},
        **{"ts": start, "dur": stop - start, "args": {"step": step}},
      }

  def _ticket(self, step: int, timeline: types.Timeline) -> Iterable[dict]:
    for name in (_LEARNER, timeline.sampler_id):
      yield from self._process(name)
    spans = zip(types.STAGES, itertools.pairwise(timeline.times), strict=True)
    for stage, (begin, end) in spans:
      if not (math.isfinite(begin) and math.isfinite(end)):
        continue
      pid = _number(_LEARNER if stage in _AT_LEARNER else timeline.sampler_id)
      same = {"cat": "ticket", "id": timeline.ticket_id, "pid": pid, "tid": 0, "name": stage}
      args = {"ticket": timeline.ticket_id, "step": step}
      yield {**same, "ph": "b", "ts": _micro(begin), "args": args}
      yield {**same, "ph": "e", "ts": _micro(max(begin, end))}

  def _process(self, name: str) -> Iterable[dict]:
    """Names a process where it comes up first."""
    if name not in self._named:
      self._named.add(name)
      args = {"name": name}
      yield {"ph": "M", "name": "process_name", "pid": _number(name), "tid": 0, "args": args}


def _number(process: str) -> int:  # the same in a resumed run
  return zlib.crc32(process.encode()) % 1_000_000


def _micro(seconds: float) -> int:
  return round(seconds * 1e6)
