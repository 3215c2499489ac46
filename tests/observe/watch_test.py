"""What `offpolicy-rl watch` reads and shows."""

import io
import json
import math
import re
import time

import pytest
from rich.console import Console

from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.observe import metrics, terminal, watch

STATUS = types.RunStatus(
  session="one",
  run_id="runs/[bold]a",
  about="sums, oapl, lag async 8, seed 0",
  at=time.time(),
  ended="",
  num_steps=40,
  tickets={"queued": 3, "out": 4, "waiting": 5, "taken": 60, "expired": 2},
  samplers=(
    types.SamplerStatus(
      "host-1",
      0.5,
      {"version": 21, "tokens_per_second": 1234.0, "slots": 16, "slots_busy": 12, "groups": 60},
    ),
    types.SamplerStatus("new", 99.0, {}),
  ),
)


def train(step: int, **others) -> dict:
  """A row as the learner writes it, in so far as it is looked at."""
  return {
    "kind": "train",
    "step": step,
    "reward": step / 40,
    "entropy": 1.5,
    "lag/mean": 7.8,
    "lag/max": 8,
    "lag/histogram": {"8": 3},
    "lambda_hat": 0.25,
    "log_ratio/mean": -0.125,
    "regime/positive": 0.75,
    "regime/boundary": 0.0,
    "regime/negative": 0.25,
    "tokens": 600,
    "seconds/waiting": 0.5,
    "seconds/step": 1.0,
    "seconds/publishing": 0.5,
    "flops_per_second": 2e9,
    "sampler/tokens_per_second": 1234.0,
    **others,
  }


def heldout(step: int, value: float, version: int) -> dict:
  return {
    "kind": "heldout",
    "step": step,
    "phase": "x",
    "version": version,
    "heldout/pass@1": value,
  }


def write(run_dir, rows, status=STATUS):
  run_dir.mkdir(exist_ok=True)
  (run_dir / "config.json").write_text("{}")
  with (run_dir / metrics.FILE).open("a") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  watch.write_status(run_dir, status)


def shown(status, rows, width=120) -> str:
  parsed = metrics.parse([json.dumps(row).encode() for row in rows])
  console = Console(file=io.StringIO(), width=width)
  console.print(terminal.dashboard(status, metrics.newest({}, parsed), parsed, console))
  return console.file.getvalue()


def test_the_accuracy_before_the_warm_start_is_none_of_the_run():
  """Neither in the dashboard nor in the line that says how a run ended."""
  before = types.MetricsRow(metrics.HELDOUT, 0, {"version": -1.0, "heldout/pass@1": 0.125})
  after = types.MetricsRow(metrics.HELDOUT, 0, {"version": 0.0, "heldout/pass@1": 0.5})
  assert metrics.newest({}, [before]) == {}
  for rows in ([before, after], [after, before]):
    assert metrics.newest({}, rows)[metrics.HELDOUT]["heldout/pass@1"] == 0.5


# ------------------------------------------------------------------ reading


def test_a_directory_tells_what_is_new_and_nothing_twice(tmp_path):
  run = tmp_path / "run"
  write(run, [train(0), train(1)])
  with (run / metrics.FILE).open("a") as file:
    file.write('{"kind": "train", "st')  # being written
  look = watch.directory(run)
  first = look("", 0, 0.0)
  assert first.status == STATUS and first.reset
  assert [row.step for row in first.rows] == [0, 1]
  assert "lag/histogram" not in first.rows[0].values and first.rows[0].values["lag/max"] == 8
  with (run / metrics.FILE).open("a") as file:
    file.write('ep": 2, "loss": NaN}\n')
  second = look("one", first.position, 0.0)
  assert [row.step for row in second.rows] == [2] and not second.reset
  assert math.isnan(second.rows[0].values["loss"])
  third = look("one", second.position, 0.0)
  assert (third.rows, third.position, third.reset) == ([], second.position, False)


def test_a_resumed_run_is_looked_at_anew(tmp_path):
  """It cuts its files where its checkpoint was; what was seen of a lost future is void."""
  run = tmp_path / "run"
  write(run, [train(i) for i in range(6)])
  look = watch.directory(run)
  view = watch.extend(None, look("", 0, 0.0))
  lines = (run / metrics.FILE).read_text().splitlines(keepends=True)
  (run / metrics.FILE).write_text("".join(lines[:3]))
  cut = look("one", view.position, 0.0)
  assert cut.reset and [row.step for row in cut.rows] == [0, 1, 2]
  again = [train(i, reward=9.0) for i in range(3, 9)]  # past where we were, of another session
  write(run, again, STATUS._replace(session="two"))
  view = watch.extend(view, look("one", view.position, 0.0))
  assert [row.step for row in view.rows] == list(range(9))
  assert view.newest["train"]["reward"] == 9.0
  with (run / metrics.FILE).open("rb") as file:  # the rest of a line is no row
    size = len(file.read())
  rest = look("two", size - 20, 0.0)
  assert rest.rows == [] and rest.position == size


def test_of_many_rows_few_are_kept_but_all_evaluations(tmp_path):
  run = tmp_path / "run"
  rows = [train(i) for i in range(1000)]
  rows[501:501] = [heldout(500, 0.75, 500)]
  write(run, rows)
  found = watch.directory(run)("", 0, 0.0).rows
  assert [row.step for row in found[-32:]] == list(range(968, 1000))
  assert [row.step for row in found[:3]] == [0, 6, 12] and len(found) < 200
  assert [row.step for row in found if row.kind == "heldout"] == [500]
  view = None
  for start in range(0, 9000, 900):  # and of a long look
    more = [types.MetricsRow("train", start + i, {}) for i in range(900)]
    view = watch.extend(view, types.RunUpdate(STATUS, view is None, 0, more))
  assert len(view.rows) <= 2000 and view.rows[-1].step == 8999 and view.rows[0].step == 0


def test_the_status_survives_its_file_and_old_runs_have_none(tmp_path):
  watch.write_status(tmp_path, STATUS)
  assert watch.read_status(tmp_path) == STATUS
  (tmp_path / watch.FILE).unlink()
  config = {
    "task": {"name": "sums"},
    "objective": {"name": "oapl"},
    "seed": 7,
    "lag": {"mode": "fixed", "max_lag": 4},
    "learner": {"steps": 50},
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  old = watch.read_status(tmp_path)
  assert (old.about, old.num_steps, old.ended) == ("sums, oapl, lag fixed 4, seed 7", 50, "")
  (tmp_path / "ledger.json").write_text("{}")
  assert watch.read_status(tmp_path).ended == "finished"


# ------------------------------------------------------------------ showing


def test_a_frame_has_everything():
  rows = [heldout(0, 0.0, -1), heldout(0, 0.25, 0)]
  rows += [train(i, **{"mismatch/mean": 2e-6, "mismatch/max": 3e-5}) for i in range(20)]
  text = shown(STATUS, [*rows, heldout(20, 0.5, 20)])
  for part in (
    "runs/[bold]a  sums, oapl, lag async 8, seed 0  training",
    "step 20/40",
    "left 0:40",  # two seconds each
    "reward        0.475",
    "held-out      0.500",
    "entropy       1.500",
    "lag           7.8 (max 8)",
    "lambda        0.2500",
    "log-ratio     -0.125",
    "mismatch      2.0e-06",
    "largest       3.0e-05",
    "learner tok/s 300",
    "sampler tok/s 1,234",
    "learner waits 25%",
    "flop/s        2.0e+09",
    "target of the groups: 75% pessimistic, 25% sharper",
    "tickets: 12 open: 3 queued, 4 leased, 5 done; so far 60 taken, 2 expired",
  ):
    assert part in text, (part, text)
  lines = [line.split() for line in text.splitlines()]
  assert ["host-1", "21", "1,234", "12/16", "60", "0.5", "s", "ago"] in lines
  assert ["new", "-", "-", "-/-", "-", "99.0", "s", "ago"] in lines
  assert "▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇██" in text  # the reward's
  assert re.search(r"held-out +0\.500 +▁█ *\n", text)  # without that before the warm start
  assert "alarm" not in text
  assert max(map(len, shown(STATUS, rows, width=80).splitlines())) <= 80
  assert "12.5%" in shown(STATUS, [train(0, mfu=0.125)])


def test_what_a_run_is_doing_is_said_from_its_rows():
  assert "  starting" in shown(STATUS, [])
  warm = [{"kind": "warm_start", "step": 41, "loss": 0.75}]
  assert "  warm start, step 42, loss 0.750" in shown(STATUS, warm)
  assert "  last checkpoint and evaluation" in shown(STATUS, [train(39)])
  assert "  stopped; --resume goes on" in shown(STATUS._replace(ended="stopped"), [train(9)])
  lost = shown(STATUS._replace(at=time.time() - 75), [train(9)])
  assert "nothing from the learner for 75 s" in lost
  assert "sign of life" not in shown(STATUS._replace(at=math.nan), [train(9)])


def test_alarms_newest_first_and_in_words_once_they_last():
  rows = [train(i, **{"alarm/memorising": 1.0, "alarm/lambda_negative": 0.0}) for i in range(20)]
  rows[12]["alarm/lambda_negative"] = 1.0
  alarms = [line for line in shown(STATUS, rows, width=300).splitlines() if "alarm" in line]
  assert alarms[0].startswith("alarm, step 20, 20 of the last 20: the mean log-ratio is positive")
  assert alarms[1].strip() == "alarm, step 13, 1 of the last 20: lambda_negative"
  once = shown(STATUS, [train(5, **{"alarm/mismatch": 1.0})], width=300)
  assert "alarm, step 6, 1 of the last 1: samplers and learner disagree" in once


def test_a_narrow_terminal_shows_whole_figures_only():
  line = "step 9/40  left 0:00  reward 0.500  held-out 0.281"
  assert [terminal.first_figures(line, width) for width in (60, 40, 2)] == [
    line,
    "step 9/40  left 0:00  reward 0.500",
    "step 9/40",
  ]


def test_a_narrow_terminal_keeps_names_and_figures_and_drops_the_curves():
  rows = [train(i) for i in range(40)]
  narrow = shown(STATUS, rows, width=60)
  for part in ("learner tok/s 300", "flop/s        2.0e+09", "lag           7.8 (max 8)"):
    assert part in narrow
  assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 60


def test_curves():
  assert terminal.curve([(i, float(i)) for i in range(8)]) == "▁▂▃▄▅▆▇█"
  assert terminal.curve([(i, float(i)) for i in range(80)], most=4) == "▁▃▆█"
  assert terminal.curve([(0, 1.0), (1, math.nan), (2, 1.0)]) == "▁▁"
  assert terminal.curve([(0, 0.0), (9, 1.0), (10, 2.0)], "abc") == "aac"
  assert terminal.curve([(3, 5.0)]) == terminal.curve([]) == ""
  assert [terminal.clock(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


# ------------------------------------------------------------------ running


def scripted(*news):
  """A source that says these one after the other, and how it was asked."""
  left, asked = list(news), []

  def look(session, position, seconds):
    asked.append((session, position, seconds))
    return left.pop(0)

  return look, asked


[ROW] = metrics.parse([json.dumps(train(9)).encode()])
BEGUN = types.RunUpdate(STATUS, True, 10, [ROW])
DONE = types.RunUpdate(STATUS._replace(ended="finished"), False, 20, [ROW._replace(step=39)])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_look_ends_with_the_run(terminal):
  look, asked = scripted(BEGUN, BEGUN._replace(reset=False, rows=[]), DONE)
  console = Console(file=io.StringIO(), width=200, force_terminal=terminal, soft_wrap=True)
  watch.run(look, console)
  assert asked == [("", 0, 0.0), ("one", 10, 1.0), ("one", 10, 1.0)]
  text = console.file.getvalue()
  assert "finished (40 of 40 steps" in text
  assert ("samplers 2  tickets: open 12  queued 3  leased 4  done 5" in text) == (not terminal)
  assert ("target of the groups" in text) == terminal


def test_once_is_one_frame_and_the_command_says_how_it_went(tmp_path, capsys, monkeypatch):
  write(tmp_path / "run", [train(9)])
  assert main.main(["watch", "--once", str(tmp_path / "run")]) == 0
  assert "step 10/40" in capsys.readouterr().out
  for wrong in (str(tmp_path), str(tmp_path / "absent"), "host:port"):
    assert main.main(["watch", wrong]) == 2
    assert f"RUN: got {wrong!r}, expected a directory" in capsys.readouterr().err
  assert main.main(["watch", "127.0.0.1:1", "--once", "--patience=0"]) == 1
  assert "no learner at 127.0.0.1:1" in capsys.readouterr().err
  monkeypatch.setattr(watch, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
  assert main.main(["watch", str(tmp_path / "run")]) == 130


def test_a_bar_tells_where_the_time_of_a_completion_goes():
  """In the median of the last steps."""
  seconds = {"lease": 1.0, "prefill": 0.5, "decode": 2.0, "verifier": 0.001, "use": 0.499}
  rows = [train(i, **{f"ticket/{s}": 9.0 for s in seconds}) for i in range(10)]
  rows += [train(10 + i, **{f"ticket/{s}": x for s, x in seconds.items()}) for i in range(20)]
  text = shown(STATUS, rows)
  [legend] = [line for line in text.splitlines() if "a completion's" in line]
  words = " ".join(legend.split())
  assert words == "a completion's 4 s: lease 25% prefill 12% decode 50% use 12%"
  assert "█" * 60 in text
  assert "a completion's" not in shown(STATUS, [train(0)])


def test_a_line_tells_where_the_time_of_an_episode_goes():
  seconds = {"world": 3.0, "queue": 1.0, "model": 4.0}
  row = train(0, **{f"episode/seconds_{name}": value for name, value in seconds.items()})
  assert "an episode's 8 s: world 38%  queue 12%  model 50%" in shown(STATUS, [row])
  assert "an episode's" not in shown(STATUS, [train(0)])


def test_wide_terminals_show_what_is_measured_of_each_sampler():
  stats = {"version": 3.0, "reward": 0.25, "mismatch": 1e-5, "restarts": 2.0}
  status = STATUS._replace(samplers=(types.SamplerStatus("a", 0.1, stats),))
  head, row = [line.split() for line in shown(status, []).splitlines()[-2:]]
  assert head[-4:] == ["reward", "mismatch", "restarts", "heartbeat"]
  assert row[-6:] == ["0.250", "1.0e-05", "2", "0.1", "s", "ago"]
  assert "reward" not in shown(status, [], width=80).splitlines()[-2]
