"""One writer for every number of a run: metrics.jsonl and TensorBoard."""

import contextlib
import io
import json
import os
import pathlib
import time

from offpolicy_rl import types

TASK, TRAIN, HELDOUT, WARM_START = "task", "train", "heldout", "warm_start"
FILE = "metrics.jsonl"
_NEWEST_BYTES = 1 << 26  # of a file that somebody looks at who does not know it yet
_SPREAD, _NEWEST = 200, 32  # rows of these that are kept: evenly spread ones, the last ones


class JsonLines:
  """A file of one JSON object per line that a resumed run continues exactly where it stood."""

  def __init__(self, path: pathlib.Path, position: int | None = None):
    """`position`: bytes to keep, what follows belongs to a lost future; None = all.

    A file that is shorter (lost, while the checkpoint was elsewhere) is written on as it is.
    """
    self._file = path.open("a")
    if position is not None:
      self._file.truncate(min(position, os.fstat(self._file.fileno()).st_size))

  def append(self, row: dict) -> None:
    """Writes one line and flushes it, so that others can follow the run."""
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()

  def position(self) -> int:
    """Bytes that are safely on disk."""
    os.fsync(self._file.fileno())
    return os.fstat(self._file.fileno()).st_size

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class TensorBoard:
  """Event files, written in the caller's thread. Expendable: what the disk refuses is left out.

  (tensorboardX's SummaryWriter has a thread of its own, whose death on a full disk blocks the
  caller for ever.)
  """

  def __init__(self, folder: pathlib.Path, purge_step: int | None):
    """`purge_step`: TensorBoard hides what earlier files have from this step on; None = nothing."""
    self._folder, self._purge_step = folder, purge_step
    self._writer, self._files = None, 0

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Adds one value per tag."""
    from tensorboardX.proto import event_pb2, summary_pb2  # the samplers do without it

    values = [summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in scalars.items()]
    event = event_pb2.Event(
      wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values)
    )
    try:
      self._writer = self._writer or self._open(event_pb2)
      self._writer.write_event(event)
      self._writer.flush()
    except OSError:
      self.close()  # the file ends in a torn record: the next row begins another

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

  def __init__(self, run_dir: pathlib.Path, *, position: int | None = None, step: int = 0):
    """`position`, `step`: where a resumed run stood; None = write on."""
    self._rows = JsonLines(run_dir / FILE, position)
    self._board = TensorBoard(run_dir / "tensorboard", None if position is None else step)

  def write(self, kind: str, step: int, metrics: dict) -> None:
    """Writes one row."""
    self._rows.append({"kind": kind, "step": step, **metrics})
    tag = lambda name: f"{kind}/{name.removeprefix(kind + '/')}"
    self._board.write(
      step, {tag(name): v for name, v in metrics.items() if isinstance(v, (int, float))}
    )

  def position(self) -> int:
    """Bytes of metrics.jsonl that are safely on disk."""
    return self._rows.position()

  def close(self) -> None:
    """Everything is on disk afterwards."""
    self._rows.close()
    self._board.close()


def read(run_dir: pathlib.Path) -> list[dict]:
  """The rows of a run; a line that a crash or a bad disk has damaged is left out."""
  rows = read_lines(pathlib.Path(run_dir) / FILE)
  return [r for r in rows if isinstance(r.get("kind"), str) and type(r.get("step")) is int]


def read_lines(path: pathlib.Path) -> list[dict]:
  """The rows of a file of JsonLines, [] where there is none; damaged ones are left out."""
  rows = []
  for line in path.read_bytes().split(b"\n") if path.exists() else []:
    with contextlib.suppress(ValueError, RecursionError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict)]


def news(run_dir: pathlib.Path, status: types.RunStatus, session: str, position: int) -> types.News:
  """What somebody does not know yet who was told, in `session`, of the rows up to `position`."""
  path = pathlib.Path(run_dir) / FILE
  size = path.stat().st_size if path.exists() else 0
  anew = session != status.session or position > size
  start = max(0, size - _NEWEST_BYTES) if anew else position
  with path.open("rb") if size else contextlib.nullcontext(io.BytesIO()) as file:
    file.seek(start)
    text = file.read().rpartition(b"\n")[0]
  lines = text.splitlines()
  rows = [row for row in map(_numbers, _thinned(lines)) if row is not None]
  return types.News(status, anew, start + len(text) + bool(text), rows)


def _thinned(lines: list[bytes]) -> list[bytes]:
  """Few of many, in order: every so many-th, the last ones, and what evaluations found."""
  stride = -(-len(lines) // _SPREAD) or 1
  heldout = b'{"kind": "%s"' % HELDOUT.encode()
  found = [i for i, line in enumerate(lines) if line.startswith(heldout)][-_SPREAD:]
  newest = range(max(0, len(lines) - _NEWEST), len(lines))
  return [lines[i] for i in sorted({*range(0, len(lines), stride), *newest, *found})]


def _numbers(line: bytes) -> types.MetricsRow | None:
  """None for the rest of a line of which a part was read before a resumed run cut the file."""
  try:
    row = json.loads(line)
    kind, step = row.pop("kind"), row.pop("step")
  except (ValueError, KeyError, AttributeError):
    return None
  numbers = {name: float(v) for name, v in row.items() if isinstance(v, (int, float))}
  return types.MetricsRow(kind, step, numbers)


def newest(known: dict[str, dict], news: types.News) -> dict[str, dict]:
  """kind -> name -> its newest value, and "step": `known`, brought up to date."""
  found = {} if news.anew else dict(known)
  for row in news.rows:
    found[row.kind] = found.get(row.kind, {}) | row.values | {"step": row.step}
  return found


def pace(row: dict) -> dict[str, float]:
  """Of a training step: its seconds, tokens_per_second, and waiting, the share of its time."""
  seconds = sum(row[f"seconds/{part}"] for part in ("waiting", "step", "publishing"))
  seconds = max(seconds, 1e-9)
  return {
    "seconds": seconds,
    "tokens_per_second": row["tokens"] / seconds,
    "waiting": row["seconds/waiting"] / seconds,
  }
