"""The files of a run that grow with every step, and the progress line."""

import io
import json
import re

import pytest
from rich.console import Console

from offpolicy_rl.observe import metrics, terminal

ROW = {
  "reward": 0.5,
  "entropy": 0.25,
  "lag/mean": 3.0,
  "tokens": 600,
  "sampler/tokens_per_second": 1234.0,
  "seconds/waiting": 0.1,
  "seconds/step": 0.2,
  "seconds/publishing": 0.0,
}
HELDOUT = {"phase": "during", "version": 0, "heldout/pass@1": 0.75, "heldout/verifier_failures": 0}


def test_rows_come_back_and_a_cut_line_is_left_out(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(metrics.TRAIN, 0, {"reward": 0.5, "lag/histogram": {"1": 3}})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "st')
  assert metrics.read(tmp_path) == [
    {"kind": "train", "step": 0, "reward": 0.5, "lag/histogram": {"1": 3}}
  ]
  assert metrics.read(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
  "damage",
  [
    b"\0" * 512,
    b'{"kind": "train", "step": \xff}',
    b"[1]",
    b'{"step": 1}',
    b'{"kind": "train"}',
    b'{"kind": "train", "step": "1"}',
    b"[" * 50_000,
  ],
  ids=["zeros", "no text", "no object", "no kind", "no step", "no number", "deep"],
)
def test_what_a_bad_disk_left_of_a_line_costs_no_other(tmp_path, damage):
  rows = [{"kind": "train", "step": step, "reward": 0.5} for step in range(3)]
  lines = [json.dumps(row).encode() for row in rows]
  lines[1] = damage
  (tmp_path / metrics.FILE).write_bytes(b"\n".join(lines) + b"\n")
  assert metrics.read(tmp_path) == [rows[0], rows[2]]
  assert [row.step for row in metrics.last_rows(tmp_path)] == [0, 2]


def test_a_number_that_is_no_float_costs_a_watcher_its_row_only(tmp_path):
  lines = ['{"kind": "train", "step": 0, "reward": 1' + "0" * 400 + "}"]
  lines.append('{"kind": "train", "step": 1, "reward": 0.5}')
  (tmp_path / metrics.FILE).write_text("\n".join(lines) + "\n")
  assert [row.step for row in metrics.last_rows(tmp_path)] == [1]


def test_a_resume_drops_the_rows_of_the_lost_future(tmp_path):
  """Also a last line that was cut by the crash."""
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(metrics.WARM_START, 50, {"loss": 1.0})
  for step in range(8):
    if step == 5:
      position = writer.position()
    writer.write(metrics.TRAIN, step, {"reward": 0.0})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "train", "st')
  writer = metrics.MetricsWriter(tmp_path, position=position, step=5)
  writer.write(metrics.TRAIN, 5, {"reward": 1.0})
  writer.close()
  rows = metrics.read(tmp_path)
  assert [r["step"] for r in rows] == [50, 0, 1, 2, 3, 4, 5]
  assert rows[-1]["reward"] == 1.0


@pytest.mark.parametrize(("position", "kept"), [(None, [0, 1]), (12, [0]), (0, []), (999, [0, 1])])
def test_a_file_goes_on_where_the_checkpoint_stood(tmp_path, position, kept):
  """Past its end, too: the file of a run whose own disk was lost begins anew, without a hole."""
  rows = [{"step": 0}, {"step": 1}]
  first = metrics.JsonLines(tmp_path / metrics.FILE)
  for row in rows:
    first.append(row)
  first.close()
  second = metrics.JsonLines(tmp_path / metrics.FILE, position)
  second.append({"step": 7})
  second.close()
  assert [row["step"] for row in metrics.read_lines(tmp_path / metrics.FILE)] == [*kept, 7]


def scalars(folder) -> list[tuple[int, str, float]]:
  """(step, tag, value) of every event file, in the order of their making."""
  from tensorboardX.proto.event_pb2 import Event

  found = []
  for path in sorted(folder.iterdir(), key=lambda p: int(p.suffix[1:])):
    data = path.read_bytes()
    while data:  # a record: length, its checksum, the event, its checksum
      length = int.from_bytes(data[:8], "little")
      event = Event.FromString(data[12 : 12 + length])
      found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      data = data[16 + length :]
  return found


def test_tensorboard_gets_the_scalars_and_survives_a_disk_that_refuses(tmp_path, monkeypatch):
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(metrics.TRAIN, 0, {"reward": 0.5, "lag/histogram": {"1": 3}})
  refuse = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
  with monkeypatch.context() as full:
    full.setattr("tensorboardX.event_file_writer.EventsWriter.flush", refuse)
    writer.write(metrics.TRAIN, 1, {"reward": 0.25})
  writer.write(metrics.HELDOUT, 2, {"heldout/pass@1": 1.0})
  writer.close()
  assert [row["step"] for row in metrics.read(tmp_path)] == [0, 1, 2]
  found = scalars(tmp_path / "tensorboard")
  assert found[0] == (0, "train/reward", 0.5) and found[-1] == (2, "heldout/pass@1", 1.0)


def test_plain_progress_lines_where_there_is_no_terminal():
  out = io.StringIO()
  screen = terminal.Progress(100, Console(file=out, width=200, highlight=False))
  screen.row(metrics.HELDOUT, 0, HELDOUT)
  for step in (0, 1, 2, 99):
    screen.row(metrics.TRAIN, step, ROW)
  screen.stop()
  lines = out.getvalue().splitlines()
  assert len(lines) == 2  # the first, and the last; those in between came within five seconds
  assert lines[0] == (
    "step 1/100  left -:--  reward 0.500  held-out 0.750  entropy 0.250  lag 3.0  "
    "learner tok/s 2,000  sampler tok/s 1,234"
  )
  assert lines[1].startswith("step 100/100")


def test_what_is_not_known_yet_is_no_number():
  """After --resume, before an evaluation; and how long the first step took says nothing.

  Nor do weights from before the warm start, which are not what is trained.
  """
  out = io.StringIO()
  screen = terminal.Progress(3, Console(file=out, width=200, highlight=False))
  screen.row(metrics.HELDOUT, 0, HELDOUT | {"version": -1})
  row = {name: value for name, value in ROW.items() if name != "sampler/tokens_per_second"}
  screen.row(metrics.TRAIN, 1, row)
  screen.row(metrics.TRAIN, 2, row)
  first, last = out.getvalue().splitlines()
  assert first == (
    "step 2/3  left -:--  reward 0.500  held-out -  entropy 0.250  lag 3.0  "
    "learner tok/s 2,000  sampler tok/s -"
  )
  assert last.startswith("step 3/3  left 0:00  ")


def test_a_terminal_gets_one_live_line():
  out = io.StringIO()
  screen = terminal.Progress(
    100, Console(file=out, width=200, force_terminal=True, highlight=False)
  )
  for step in range(50):
    screen.row(metrics.TRAIN, step, ROW)
  screen.say("a line that stays")
  screen.stop()
  visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
  assert "a line that stays" in visible and "step 50/100" in visible
  assert visible.count("step ") < 15


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("alarm/memorising", "the mean log-ratio is positive"),
    ("verifier_failures", "the verifier or environment fails on completions of every batch"),
  ],
)
def test_an_alarm_is_told_once_and_only_when_it_lasts(name, message):
  out = io.StringIO()
  screen = terminal.Progress(1000, Console(file=out, width=500, highlight=False))
  for step in range(100):  # off every tenth step: never twenty in a row
    screen.row(metrics.TRAIN, step, ROW | {name: float(step % 10 > 0)})
  assert "alarm" not in out.getvalue()
  for step in range(100, 200):
    screen.row(metrics.TRAIN, step, ROW | {name: 1.0})
  assert out.getvalue().count("alarm") == 1
  assert f"alarm, steps 92 to 111: {message}" in out.getvalue()
