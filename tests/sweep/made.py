"""Sweeps for tests, and run directories as runs leave them."""

import pathlib

from offpolicy_rl.observe import metrics
from offpolicy_rl.sweep import runs
from tests.conftest import ROOT

CARD = str(ROOT / "configs" / "test.py")


def sweep_file(folder: pathlib.Path, returned: str) -> str:
  """A sweep file whose get_sweep returns what the text says."""
  path = folder / "mine.py"
  path.write_text(f"from offpolicy_rl import sweep\n\ndef get_sweep():\n  return {returned}\n")
  return str(path)


def expand(folder: pathlib.Path, returned: str, assignments=()) -> runs.Sweep:
  """The runs of such a file on configs/test.py."""
  return runs.expand(sweep_file(folder, returned), CARD, list(assignments))


def finish(run_dir: pathlib.Path, *, steps: int = 40, score: float = 0.5) -> None:
  """A run directory as far as a sweep looks into it."""
  rows = metrics.JsonLines(run_dir / metrics.FILE)
  times = {"seconds/waiting": 1.0, "seconds/step": 0.5, "seconds/publishing": 0.5}
  for step in range(steps):
    row = {"reward": 0.5, "entropy": 10.0 * (step < 20), **times}
    rows.append({"kind": metrics.TRAIN, "step": step, **row})
  for phase, version, value in (
    ("before warm start", -1, 0.0),
    ("after warm start", 0, score / 2),
    ("after", steps, score),
  ):
    row = {"phase": phase, "version": version, "heldout/pass@1": value}
    rows.append({"kind": metrics.HELDOUT, "step": max(version, 0), **row})
  rows.close()


def swept(tmp_path, returned: str, score=lambda values: 0.5) -> tuple[runs.Sweep, pathlib.Path]:
  """A sweep whose runs are finished, with a score of their own."""
  made, out = expand(tmp_path, returned), tmp_path / "out"
  out.mkdir()
  runs.write(made, out)
  for run in made.runs:
    (out / run.name).mkdir()
    finish(out / run.name, score=score(run.values))
  return made, out
