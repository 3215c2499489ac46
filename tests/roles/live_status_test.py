"""How a learner tells of itself while it runs."""

import io
import threading
import time

import numpy as np
from rich.console import Console

from offpolicy_rl.observe import metrics, terminal, watch
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.roles import run_files
from offpolicy_rl.roles.sampler_service import SamplerService
from offpolicy_rl.transport import client, codec, names, protocol, server, weights


def make(tiny_config, run_dir) -> tuple[SamplerService, run_files.LiveStatus]:
  run_dir.mkdir(exist_ok=True)
  service = SamplerService(
    Ledger(10), None, weights.WeightStore(), LagControl("async", 1), expected=codec.Expected(9, 9)
  )
  return service, run_files.LiveStatus(run_dir, "one", tiny_config, service)


def test_the_file_is_kept_up_to_date_until_the_end(tiny_config, tmp_path, monkeypatch):
  monkeypatch.setattr(run_files, "_STATUS_SECONDS", 0.02)
  service, live = make(tiny_config, tmp_path / "run")
  service.join("a")
  service.heartbeat("a", {"version": 3.0}, {})
  end = time.monotonic() + 10
  while time.monotonic() < end and not (
    (tmp_path / "run" / watch.FILE).exists() and watch.read_status(tmp_path / "run").samplers
  ):
    time.sleep(0.01)
  found = watch.read_status(tmp_path / "run")
  assert (found.run_id, found.session, found.num_steps) == ("run", "one", 40)
  assert found.about == "sums, beta_shift, lag async 8, seed 0" and found.ended == ""
  assert [(s.name, s.stats) for s in found.samplers] == [("a", {"version": 3.0})]
  assert found.tickets["queued"] == 0
  live.end("finished")
  assert watch.read_status(tmp_path / "run").ended == "finished"


def test_samplers_are_told_of_by_name_with_what_is_measured_of_them(tiny_config, tmp_path):
  service, live = make(tiny_config, tmp_path / "run")
  a, b, other = names.unique("a"), names.unique("b"), names.unique("b")
  for sampler_id in (a, b, other):
    service.join(sampler_id)
  service.heartbeat(a, {"version": 3.0}, {})
  gaps, who = np.array([0.25] * 8 + [9.0] * 8), np.array([a] * 8 + [b] * 8)
  service.stats.step({"sampler": who, "log_ratio": gaps})
  found = {s.name: s.stats for s in live.status().samplers}
  assert found == {
    "a": {"version": 3.0, "completions": 8, "log_ratio": 0.25, "unlike": 0.0},
    b: {"completions": 8, "log_ratio": 9.0, "unlike": 1.0},
    other: {},
  }
  console = Console(file=io.StringIO(), width=120)
  console.print(terminal.dashboard(live.status(), {}, [], console))
  assert b in console.file.getvalue()


def test_a_run_that_ends_while_the_file_is_written_is_said_to_have_ended(
  tiny_config, tmp_path, monkeypatch
):
  write, writing, go_on = watch.write_status, threading.Event(), threading.Event()

  def write_slowly(run_dir, status):
    writing.set()
    go_on.wait(5)
    write(run_dir, status)

  monkeypatch.setattr(watch, "write_status", write_slowly)
  _, live = make(tiny_config, tmp_path / "run")
  assert writing.wait(5)
  threading.Timer(0.2, go_on.set).start()
  live.end("finished")
  assert watch.read_status(tmp_path / "run").ended == "finished"


def test_a_full_disk_ends_no_run(tiny_config, tmp_path, monkeypatch):
  monkeypatch.setattr(run_files, "_STATUS_SECONDS", 0.01)
  asked = threading.Event()

  def refuse(*_):
    asked.set()
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(watch, "write_status", refuse)
  _, live = make(tiny_config, tmp_path / "run")
  assert asked.wait(5)
  live.end("stopped")
  assert live.status().ended == "stopped"


def test_who_watches_is_no_sampler_and_keeps_no_run_waiting(tiny_config, tmp_path):
  service, live = make(tiny_config, tmp_path / "run")
  wire, address = server.start(
    "127.0.0.1:0",
    protocol.Identity("one", "run", "{}", "p"),
    service.handlers(live.wait_for_update),
    service.weights,
    max_samplers=1,
    max_message_mb=1,
  )
  writer = metrics.MetricsWriter(tmp_path / "run")
  writer.write(metrics.WARM_START, 0, {"loss": 2.5})
  watcher = client.LearnerClient(address, "watch")
  first = watcher.watch("", 0, 0.0)
  assert first.reset and [row.values for row in first.rows] == [{"loss": 2.5}]
  later = []
  looking = threading.Thread(
    target=lambda: later.append(watcher.watch("one", first.position, 30.0))
  )
  looking.start()
  writer.write(metrics.WARM_START, 1, {"loss": 2.25})
  time.sleep(0.1)
  assert live.status().samplers == () and not later
  start = time.monotonic()
  live.end("finished")
  service.dismiss(silent_seconds=60, at_most_seconds=60)
  wire.stop(grace=2.0).wait(10)  # as the learner does
  looking.join(10)
  assert time.monotonic() - start < 8
  [news] = later  # the last word arrived although the learner went
  assert news.status.ended == "finished" and not news.reset
  assert [row.step for row in news.rows] == [1]
  writer.close()
