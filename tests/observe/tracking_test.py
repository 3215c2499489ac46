"""Trackers get every row once, whatever is resumed, and none of them can end a run."""

import errno
import io
import threading
import time

import pytest
from rich.console import Console

from offpolicy_rl.observe import metrics, terminal, trackers, tracking
from offpolicy_rl.roles import run_files
from tests.conftest import ROOT
from tests.roles.run_files_test import ROW, make_steps


class Fake:
  """A tracker in memory, which outlives the runs that are opened in it."""

  where = "in memory"

  def __init__(self, fails_at: int | None = None):
    self.sent: list[tracking.Row] = []
    self.opened: list[tracking.TrackedRun] = []
    self.ended: list[tuple] = []
    self.fails_at, self.waits = fails_at, threading.Event()
    self.waits.set()

  @property
  def rows(self) -> int:
    return self.sent[-1].number + 1 if self.sent else 0

  def open(self, run: tracking.TrackedRun) -> "Fake":
    self.opened.append(run)
    return self

  def write(self, row: tracking.Row) -> None:
    self.waits.wait()
    if row.number == self.fails_at:
      raise ConnectionError("no route to host\nand a long story")
    self.sent.append(row)

  def close(self, result, artifacts) -> None:
    self.ended.append((result, [path.name for path in artifacts]))

  def steps(self, kind: str = metrics.TRAIN) -> list[int]:
    return [row.step for row in self.sent if row.kind == kind]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(tracking, "_SECONDS", 0.01)


class Session:
  """A learner's files, from its start or from a checkpoint, until it is killed or finishes."""

  def __init__(self, run_dir, fakes, position=None, first_step=0):
    self.said = []
    packages = {n: tracking.Package(fake.open, "fake login") for n, fake in fakes.items()}
    before = position.get("tracking", {}) if position else None
    tracked = tracking.Tracking(
      packages, run_dir, {"seed": 3}, self.said.append, group="sweep", position=before
    )
    screen = terminal.Progress(100, Console(file=io.StringIO()))
    self.files = run_files.RunFiles(
      run_dir, "{}", screen, position=position, first_step=first_step, tracking=tracked
    )

  def end(self, result="finished") -> None:
    self.files.close()
    self.files.finish(result)


def until(condition) -> None:
  end = time.monotonic() + 10
  while not condition() and time.monotonic() < end:
    time.sleep(0.005)
  assert condition()


def test_a_tracker_gets_rows_by_tag_with_what_is_derived_and_the_files_at_the_end(tmp_path):
  fake = Fake()
  (tmp_path / "config.json").write_text("{}")
  session = Session(tmp_path, {"fake": fake})
  session.files.write_task({"prompts": 7})
  session.files.write(metrics.HELDOUT, 0, {"phase": "before", "heldout/pass@1": 0.5} | EVALUATED)
  make_steps(session.files, [0])
  session.end()
  [run] = fake.opened
  assert (run.name, run.group, run.config) == (tmp_path.name, "sweep", {"seed": 3})
  assert [(row.number, row.kind, row.step) for row in fake.sent] == [
    (0, "task", 0),
    (1, "heldout", 0),
    (2, "train", 0),
  ]
  assert fake.sent[0].values == {"task/prompts": 7.0}
  assert fake.sent[1].values["heldout/pass@1"] == 0.5
  assert fake.sent[2].values["train/reward"] == ROW["reward"]
  assert fake.sent[2].values["train/learner/utilisation"] == pytest.approx(2 / 3)
  assert fake.ended == [("finished", ["config.json", "completions.jsonl"])]
  assert session.said == ["tracker fake: in memory"]


EVALUATED = {
  "heldout/greedy": 0.5,
  "heldout/pass@1_stderr": 0.1,
  "heldout/k": 2,
  "heldout/pass@k": 0.5,
  "heldout/problems": 4,
  "heldout/verifier_failures": 0,
}


def test_a_resume_goes_on_in_the_same_run_and_repeats_no_row(tmp_path):
  """Also where evaluations come at another place among the steps than the first time."""
  fake = Fake()
  evaluate = lambda files, step: files.write(
    metrics.HELDOUT, step, {"phase": "during", "heldout/pass@1": 0.5} | EVALUATED
  )
  first = Session(tmp_path, {"fake": fake})
  make_steps(first.files, [0, 1])
  position = first.files.position()
  make_steps(first.files, [2, 3])
  evaluate(first.files, 2)
  until(lambda: len(fake.sent) == 5)  # killed here: no end
  second = Session(tmp_path, {"fake": fake}, position, first_step=2)
  make_steps(second.files, [2])
  evaluate(second.files, 2)
  make_steps(second.files, [3, 4])
  evaluate(second.files, 4)
  second.end()
  assert len({run.id for run in fake.opened}) == 1
  assert [row.number for row in fake.sent] == list(range(7))
  assert fake.steps() == [0, 1, 2, 3, 4] and fake.steps(metrics.HELDOUT) == [2, 4]
  own = [row["step"] for row in metrics.read(tmp_path) if row["kind"] == metrics.TRAIN]
  assert own == [0, 1, 2, 3, 4]


def test_rows_that_a_tracker_lost_or_never_got_are_sent_after_a_resume(tmp_path):
  lossy, late = Fake(), Fake()
  first = Session(tmp_path, {"lossy": lossy})
  make_steps(first.files, range(4))
  until(lambda: len(lossy.sent) == 4)
  position = first.files.position()
  del lossy.sent[2:]  # it never got them to its disk
  with (tmp_path / tracking.FILE).open("a") as file:
    file.write('{"kind": "train", "st')  # as the kill left it
  second = Session(tmp_path, {"lossy": lossy, "late": late}, position, first_step=4)
  make_steps(second.files, [4])
  second.end()
  assert lossy.steps() == late.steps() == [0, 1, 2, 3, 4]


def test_a_run_whose_disk_was_lost_goes_on_behind_its_rows(tmp_path):
  """The checkpoints were elsewhere; what they say is enough not to begin again at row 0."""
  fake = Fake()
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  first = Session(tmp_path / "a", {"fake": fake})
  make_steps(first.files, range(3))
  position = first.files.position()
  first.end()
  second = Session(tmp_path / "b", {"fake": fake}, position, first_step=3)
  make_steps(second.files, [3])
  second.end()
  assert fake.steps() == [0, 1, 2, 3]


def test_a_run_that_begins_anew_is_another_one(tmp_path):
  """It had no checkpoint yet: its metrics are dropped, and so is what was to be sent."""
  ids, fake = [], Fake()
  for _ in range(2):
    session = Session(tmp_path, {"fake": fake})
    make_steps(session.files, [0])
    session.end()
    ids.append(fake.opened[-1].id)
  assert ids[0] != ids[1]
  assert len(metrics.read_lines(tmp_path / tracking.FILE)) == 1


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(tmp_path):
  bad, good = Fake(fails_at=1), Fake()
  session = Session(tmp_path, {"bad": bad, "good": good})
  make_steps(session.files, range(5))
  session.end()
  assert good.steps() == [0, 1, 2, 3, 4] and bad.steps() == [0] and bad.ended == []
  [line] = [line for line in session.said if "Error" in line]
  assert line == (
    "tracker bad: ConnectionError: no route to host; the run goes on without it. Type fake login; "
    "a --resume of the run sends what the tracker lacks"
  )


def test_a_package_that_is_missing_is_named_with_what_to_type(tmp_path):
  def missing(run):
    raise ModuleNotFoundError("No module named 'wandb'")

  said = []
  packages = {"wandb": tracking.Package(missing, "")}
  tracked = tracking.Tracking(packages, tmp_path, {}, said.append)
  tracked.start()
  tracked.finish("finished")
  assert len(said) == 1 and "Type pip install 'offpolicy-rl[wandb]';" in said[0]


def test_a_tracker_that_hangs_holds_up_nobody(tmp_path, monkeypatch):
  monkeypatch.setattr(tracking, "_END_SECONDS", 0.1)
  fake = Fake()
  fake.waits.clear()
  session = Session(tmp_path, {"fake": fake})
  make_steps(session.files, range(3))
  session.end()
  assert session.said[-1].startswith("tracker fake: not done after")
  fake.waits.set()


def test_a_disk_that_refuses_costs_the_trackers_their_rows_only(tmp_path, monkeypatch):
  fake = Fake()
  session = Session(tmp_path, {"fake": fake})
  make_steps(session.files, [0])

  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(session.files._tracking._file, "append", refuse)
  make_steps(session.files, [1, 2])
  session.end()
  assert fake.steps() == [0] and len(metrics.read(tmp_path)) == 3
  assert sum("No space left" in line for line in session.said) == 1


def test_the_environment_of_the_long_test_has_what_the_extras_ask_for():
  lines = (ROOT / "tests" / "reference" / "trackers.txt").read_text().splitlines()
  wanted = [line for line in lines if ">=" in line]  # the others are for MLflow's server
  setup = (ROOT / "setup.py").read_text()
  assert all(f'"{line}"' in setup for line in wanted) and len(wanted) == 5


@pytest.mark.parametrize("links", [True, False])
def test_a_database_appears_whole_or_not_at_all(tmp_path, monkeypatch, links):
  made, path = tmp_path / "made", tmp_path / "mlflow.db"
  made.write_text("whole")
  if not links:
    monkeypatch.setattr(trackers.os, "link", unsupported)
  monkeypatch.setattr(trackers.shutil, "copy", half_a_copy)
  with pytest.raises(OSError, match="No space"):
    trackers.put_if_absent(made, path)
  assert list(tmp_path.iterdir()) == [made]
  monkeypatch.undo()
  if not links:
    monkeypatch.setattr(trackers.os, "link", unsupported)
  trackers.put_if_absent(made, path)
  assert path.read_text() == "whole" and sorted(tmp_path.iterdir()) == [made, path]


def unsupported(*_):
  raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def half_a_copy(source, target):
  target.write_text(source.read_text()[:2])
  raise OSError(errno.ENOSPC, "No space left on device")


def test_a_database_that_another_run_made_meanwhile_stays(tmp_path):
  made, path = tmp_path / "made", tmp_path / "mlflow.db"
  made.write_text("second")
  path.write_text("first")
  trackers.put_if_absent(made, path)
  assert path.read_text() == "first" and sorted(tmp_path.iterdir()) == [made, path]
