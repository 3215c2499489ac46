"""One writer for every number of a run: metrics.jsonl and TensorBoard."""

import json
import os
import pathlib

TRAIN, HELDOUT, WARM_START = "train", "heldout", "warm_start"
FILE = "metrics.jsonl"


class JsonLines:
  """A file of one JSON object per line that a resumed run continues exactly where it stood."""

  def __init__(self, path: pathlib.Path, position: int | None = None):
    """`position`: bytes to keep, what follows belongs to a lost future; None = all."""
    self._file = path.open("a")
    if position is not None:
      self._file.truncate(position)

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


class MetricsWriter:
  """Appends rows to `metrics.jsonl` (all values) and TensorBoard (the scalars).

  A row is {"kind": ..., "step": ..., name: value, ...}.
  """

  def __init__(self, run_dir: pathlib.Path, *, position: int | None = None, step: int = 0):
    """`position`, `step`: where a resumed run stood; None = write on."""
    from tensorboardX import SummaryWriter  # the samplers do without it

    self._rows = JsonLines(run_dir / FILE, position)
    purge = None if position is None else step  # TensorBoard then hides what came after
    self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

  def write(self, kind: str, step: int, metrics: dict) -> None:
    """Writes one row."""
    self._rows.append({"kind": kind, "step": step, **metrics})
    for name, value in metrics.items():
      if isinstance(value, (int, float)):
        tag = f"{kind}/{name.removeprefix(kind + '/')}".replace("@", "_at_")  # "@" is not allowed
        self._board.add_scalar(tag, value, step)

  def position(self) -> int:
    """Bytes of metrics.jsonl that are safely on disk."""
    return self._rows.position()

  def close(self) -> None:
    """Everything is on disk afterwards."""
    self._rows.close()
    self._board.close()


def read(run_dir: pathlib.Path) -> list[dict]:
  """The rows of a run; a last line cut short by a crash is left out."""
  path = pathlib.Path(run_dir) / FILE
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
