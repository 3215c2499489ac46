"""Writes and reads the metrics of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

from offpolicy_rl import types

TASK, TRAIN, HELDOUT, WARM_START = "task", "train", "heldout", "warm_start"
FILE, TENSORBOARD = "metrics.jsonl", "tensorboard"
TIMES = ("seconds/waiting", "seconds/step", "seconds/publishing")  # they add up to a step
_MAX_BYTES, _TAIL_BYTES = 1 << 26, 1 << 16  # bytes that a first `read_since`, `last_rows` read
_SPREAD, _LAST = 200, 32  # evenly spread and last rows that a watcher gets of those


class JsonLines:
  """A file with one JSON object per line, which a resumed run continues where it stopped."""

  def __init__(self, path: pathlib.Path, position: int | None = None):
    """`position`: truncates the file to this many bytes if it is longer; None = keeps it all."""
    self._file = path.open("a", encoding="utf-8")
    if position is not None:
      self._file.truncate(min(position, os.fstat(self._file.fileno()).st_size))

  def append(self, row: dict) -> None:
    """Writes one line and flushes it."""
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()

  def position(self) -> int:
    """Syncs the file and returns its size in bytes."""
    os.fsync(self._file.fileno())
    return os.fstat(self._file.fileno()).st_size

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class TensorBoard:
  """Event files, written in the caller's thread; what does not fit on the disk is dropped.

  tensorboardX's SummaryWriter writes in its own thread; when that dies on a full disk, it blocks.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int | None):
    """`purge_step`: TensorBoard hides earlier events from this step on; None = none."""
    self._folder, self._purge_step = folder, purge_step
    self._writer, self._files = None, 0

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Adds one value per tag."""
    from tensorboardX.proto import event_pb2, summary_pb2  # samplers need not import it

    values = [summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in scalars.items()]
    event = event_pb2.Event(
      wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values)
    )
    try:
      self._writer = self._writer or self._open(event_pb2)
      self._writer.write_event(event)
      self._writer.flush()
    except OSError:
      self.close()  # the file ends in a torn record: the next row starts a new file

  def _open(self, event_pb2):
    from tensorboardX.event_file_writer import EventsWriter

    self._folder.mkdir(parents=True, exist_ok=True)
    self._files += 1
    writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
    if self._purge_step is not None:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      writer.write_event(event_pb2.Event(step=self._purge_step, session_log=start))
      self._purge_step = None
    return writer

  def close(self) -> None:
    """Closes the file."""
    writer, self._writer = self._writer, None
    if writer is not None:
      with contextlib.suppress(OSError):
        writer.close()


class MetricsWriter:
  """Appends rows to `metrics.jsonl` (all values) and TensorBoard (the scalars).

  A row is {"kind": ..., "step": ..., name: value, ...}.
  """

  def __init__(
    self,
    run_dir: pathlib.Path,
    *,
    position: int | None = None,
    step: int = 0,
    tensorboard: bool = True,
  ):
    """`position`, `step`: where a resumed run continues; None = append."""
    self._rows = JsonLines(run_dir / FILE, position)
    purge = None if position is None else step
    self._board = TensorBoard(run_dir / TENSORBOARD, purge) if tensorboard else None

  def write(self, kind: str, step: int, metrics: dict) -> None:
    """Appends a row to both."""
    self._rows.append({"kind": kind, "step": step, **metrics})
    if self._board is not None:
      self._board.write(step, {tag(kind, name): v for name, v in numbers(metrics).items()})

  def position(self) -> int:
    return self._rows.position()

  def close(self) -> None:
    """Closes the files."""
    self._rows.close()
    if self._board is not None:
      self._board.close()


def numbers(row: dict) -> dict[str, float]:
  """The values of a row that are numbers."""
  return {name: value for name, value in row.items() if isinstance(value, (int, float))}


def of_tasks(row: Mapping) -> dict[str, float]:
  """{task: pass@1} of an evaluation of several tasks; {} of one."""
  each = "heldout/pass@1/"
  return {name.removeprefix(each): row[name] for name in row if name.startswith(each)}


def tag(kind: str, name: str) -> str:
  """The name of a metric beside those of other kinds: train/reward, heldout/pass@1."""
  return f"{kind}/{name.removeprefix(kind + '/')}"


def read(run_dir: pathlib.Path) -> list[dict]:
  """Reads the rows of a run; damaged lines are left out."""
  return _complete_rows(read_lines(pathlib.Path(run_dir) / FILE))


def _complete_rows(rows: list[dict]) -> list[dict]:
  return [r for r in rows if isinstance(r.get("kind"), str) and type(r.get("step")) is int]


def read_lines(path: pathlib.Path) -> list[dict]:
  """Reads a JsonLines file without its damaged lines; [] if there is no file."""
  return _objects(path.read_bytes().split(b"\n")) if path.exists() else []


def _objects(lines: Iterable[bytes]) -> list[dict]:
  """The JSON objects in lines; what is none is left out."""
  rows = []
  for line in lines:
    with contextlib.suppress(ValueError, RecursionError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]


def read_since(
  run_dir: pathlib.Path, status: types.RunStatus, session: str, position: int
) -> types.RunUpdate:
  """Reads the rows after `position`, or all of them if `session` is not the current one."""
  path = pathlib.Path(run_dir) / FILE
  size = path.stat().st_size if path.exists() else 0
  reset = session != status.session or position > size
  lines, position = _complete_lines(path, max(0, size - _MAX_BYTES) if reset else position)
  return types.RunUpdate(status, reset, position, parse(_thinned(lines)))


def last_rows(run_dir: pathlib.Path) -> list[types.MetricsRow]:
  """Reads the last rows of a run, up to 64 kB of them."""
  path = pathlib.Path(run_dir) / FILE
  start = max(0, path.stat().st_size - _TAIL_BYTES) if path.exists() else 0
  return parse(_complete_lines(path, start)[0])


def _complete_lines(path: pathlib.Path, start: int) -> tuple[list[bytes], int]:
  """(lines from a position on, position after them), without an unfinished last line."""
  if not path.exists():
    return [], start
  with path.open("rb") as file:
    file.seek(start)
    text, end, _ = file.read().rpartition(b"\n")
  return text.splitlines(), start + len(text) + len(end)


def _thinned(lines: list[bytes]) -> list[bytes]:
  """Evenly spread lines, the last ones, and evaluations, in order."""
  stride = -(-len(lines) // _SPREAD) or 1
  heldout = b'{"kind": "%s"' % HELDOUT.encode()
  evaluations = [i for i, line in enumerate(lines) if line.startswith(heldout)][-_SPREAD:]
  last = range(max(0, len(lines) - _LAST), len(lines))
  return [lines[i] for i in sorted({*range(0, len(lines), stride), *last, *evaluations})]


def parse(lines: list[bytes]) -> list[types.MetricsRow]:
  """Reads the numeric values of rows; what is no complete row is left out."""
  rows = []
  for row in _complete_rows(_objects(lines)):
    kind, step = row.pop("kind"), row.pop("step")
    with contextlib.suppress(OverflowError):  # an integer that is no float
      values = {name: float(v) for name, v in numbers(row).items()}
      rows.append(types.MetricsRow(kind, step, values | derived(values)))
  return rows


def is_of_training(row: Mapping[str, Any]) -> bool:
  """Whether a row is no evaluation of the weights before the warm start, which has step 0, too."""
  return row.get("version", 0) > types.RAW_VERSION


def newest(known: dict[str, dict], rows: list[types.MetricsRow]) -> dict[str, dict]:
  """Updates `known`, kind -> name -> newest value (and "step"), with further rows of training."""
  updated = dict(known)
  for row in (row for row in rows if is_of_training(row.values)):
    updated[row.kind] = updated.get(row.kind, {}) | row.values | {"step": row.step}
  return updated


def stage_seconds(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Seconds of each stage of a ticket: medians over rows of training; {} if none has any.

  The first steps compile, and a mean would show little else for long.
  """
  rows = list(rows)
  known = {
    stage: [row[f"ticket/{stage}"] for row in rows if f"ticket/{stage}" in row]
    for stage in types.STAGES
  }
  return {stage: statistics.median(values) for stage, values in known.items() if values}


def derived(row: dict) -> dict[str, float]:
  """Computes `learner/...` from a training row; {} if it has no times."""
  if not all(name in row for name in TIMES):
    return {}
  seconds = max(sum(row[name] for name in TIMES), 1e-9)
  speed = {"learner/tokens_per_second": row["tokens"] / seconds} if "tokens" in row else {}
  return speed | {
    "learner/seconds": seconds,
    "learner/waiting": row["seconds/waiting"] / seconds,
    "learner/utilisation": row["seconds/step"] / seconds,
  }
