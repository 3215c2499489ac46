"""The report, the metrics file and the progress line."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from offpolicy_rl import metrics, progress, report

ROW = {
  "reward": 0.5, "entropy": 0.25, "lag/mean": 3.0, "tokens": 600,
  "seconds/waiting": 0.1, "seconds/step": 0.2, "seconds/publishing": 0.0,
}  # fmt: skip


CONFIG = {
  "task": {"name": "<task>"}, "objective": {"name": "beta_shift"}, "seed": 1,
  "lag": {"mode": "fixed", "max_lag": 3}, "learner": {"prompts_per_step": 2, "group_size": 4},
}  # fmt: skip


def write_run(run_dir, steps: int):
  """A run directory as the learner leaves it, with text that must be escaped."""
  (run_dir / "config.json").write_text(json.dumps(CONFIG))
  writer = metrics.MetricsWriter(run_dir)
  accuracy = {"heldout/pass@1": 0.1, "heldout/pass@1_stderr": 0.01, "heldout/greedy": 0.2}
  writer.write(metrics.HELDOUT, 0, {"phase": "before", "version": 0, **accuracy})
  for step in range(steps):
    writer.write(metrics.TRAIN, step, {**ROW, "reward": step / steps})
  writer.close()
  completions = [{"text": "<b>&", "reward": 1.0}]
  sample = {"step": 0, "version": 0, "prompt": "1<2?", "completions": completions}
  (run_dir / "completions.jsonl").write_text(json.dumps(sample) + "\n")


def test_the_report_shows_the_run_and_escapes_its_text(tmp_path):
  write_run(tmp_path, steps=30)
  page = report.write(tmp_path).read_text()
  assert "&lt;task&gt;" in page and "<task>" not in page
  assert "1&lt;2?" in page and "&lt;b&gt;&amp;" in page
  assert "fixed 3" in page and "30 steps of 2 prompts x 4 completions" in page
  assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere
  assert (
    len(re.findall("<figure>", page)) == 5
  )  # accuracy, reward, entropy, lag, time: what was logged


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  page = report.write(tmp_path).read_text()
  assert "No evaluation has finished" in page and "0 steps" in page


def test_charts_place_points_and_ticks():
  svg = ElementTree.fromstring(report.chart([("a", [(0, 0.0), (10, 1.0)]), ("b", [(5, 0.5)])]))
  lines = [e.attrib["points"] for e in svg.iter("polyline")]
  (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in lines[0].split())
  [(xm, ym)] = [map(float, p.split(",")) for p in lines[1].split()]
  assert x0 < x1 and y0 > y1  # time to the right, larger values higher
  assert xm == pytest.approx((x0 + x1) / 2, abs=0.2) and ym == pytest.approx((y0 + y1) / 2, abs=0.2)
  labels = [e.text for e in svg.iter("text")]
  assert {"0", "0.5", "1", "10"} <= set(labels)


@pytest.mark.parametrize(
  ("low", "high"), [(0, 1), (-3.2, 7.7), (0.4131, 0.4132), (5, 5), (0, 0), (-1e6, 1e-6)]
)
def test_ticks_are_round_and_enclose_the_data(low, high):
  ticks = report._ticks(low, high)
  steps = np.diff(ticks)
  slack = 1e-8 * steps[0]  # far less than a pixel
  assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 8
  np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
  leading = float(f"{steps[0]:e}".split("e")[0])
  assert leading == pytest.approx(round(leading), abs=1e-3)


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
  screen = progress.Progress(100, Console(file=out, width=200, highlight=False))
  screen.heldout(0.75)
  screen.sampler_rate(1234.0)
  for step in (0, 1, 2, 99):
    screen.step(step, ROW)
  screen.stop()
  lines = out.getvalue().splitlines()
  assert len(lines) == 2  # the first, and the last; those in between came within five seconds
  assert lines[0] == (
    "step 1/100  left 0:00  reward 0.500  held-out 0.750  entropy 0.250  lag 3.0  "
    "tokens/s: learner 2,000  sampler 1,234"
  )
  assert lines[1].startswith("step 100/100")


def test_a_terminal_gets_one_live_line():
  out = io.StringIO()
  screen = progress.Progress(
    100, Console(file=out, width=200, force_terminal=True, highlight=False)
  )
  for step in range(50):
    screen.step(step, ROW)
  screen.say("a line that stays")
  screen.stop()
  visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
  assert "a line that stays" in visible and "step 50/100" in visible
  assert visible.count("step ") < 15


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("alarm/memorising", "the mean log-ratio is positive"),
    ("verifier_failures", "the verifier fails on completions of every batch"),
  ],
)
def test_an_alarm_is_told_once_and_only_when_it_lasts(name, message):
  out = io.StringIO()
  screen = progress.Progress(1000, Console(file=out, width=500, highlight=False))
  for step in range(100):  # off every tenth step: never twenty in a row
    screen.step(step, ROW | {name: float(step % 10 > 0)})
  assert "alarm" not in out.getvalue()
  for step in range(100, 200):
    screen.step(step, ROW | {name: 1.0})
  assert out.getvalue().count("alarm") == 1
  assert f"alarm, steps 92 to 111: {message}" in out.getvalue()
