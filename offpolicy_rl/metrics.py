"""One writer for every number of a run: metrics.jsonl and TensorBoard."""

import json
import pathlib

TRAIN, HELDOUT, WARM_START = "train", "heldout", "warm_start"


class MetricsWriter:
  """Appends rows to `metrics.jsonl` (all values) and TensorBoard (the scalars).

  A row is {"kind": ..., "step": ..., name: value, ...}.
  """

  def __init__(self, run_dir: pathlib.Path, *, resume_step: int | None = None):
    """`resume_step`: rows of this training step and later belong to a lost future; drop them."""
    from tensorboardX import SummaryWriter  # the samplers do without it

    self._path = run_dir / "metrics.jsonl"
    if resume_step is not None:
      kept = [
        row for row in read(run_dir) if row["step"] < resume_step or row["kind"] == WARM_START
      ]
      self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    self._file = self._path.open("a")
    self._board = SummaryWriter(str(run_dir / "tensorboard"))

  def write(self, kind: str, step: int, metrics: dict) -> None:
    """Writes one row and flushes it, so that others can follow the run."""
    self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      if isinstance(value, (int, float)):
        tag = f"{kind}/{name.removeprefix(kind + '/')}".replace("@", "_at_")  # "@" is not allowed
        self._board.add_scalar(tag, value, step)

  def close(self) -> None:
    """Everything is on disk afterwards."""
    self._file.close()
    self._board.close()


def read(run_dir: pathlib.Path) -> list[dict]:
  """The rows of a run; a last line cut short by a crash is left out."""
  path = pathlib.Path(run_dir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
