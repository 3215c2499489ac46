"""trace.json is what ui.perfetto.dev expects: known events, pairs that match, one clock."""

import collections
import json
import math

from offpolicy_rl import types
from offpolicy_rl.observe import trace

ROW = {"seconds/waiting": 0.5, "seconds/step": 1.0, "seconds/publishing": 0.25}


def timeline(name: str, begin: float, sampler: str = "s~1") -> types.Timeline:
  return types.Timeline(name, sampler, tuple(begin + i for i in range(len(types.STAGES) + 1)))


def read(run_dir) -> list[dict]:
  """The events; as the format allows, the array does not end."""
  text = (run_dir / trace.FILE).read_text()
  assert text.startswith("[\n") and text.endswith(",\n")
  return json.loads(text[:-2] + "]")


def test_a_ticket_has_a_span_for_each_stage_where_it_was_and_the_learner_for_each_part(tmp_path):
  trace.Trace(tmp_path, every=1).step(7, [timeline("train/7/0", 1000.0)], ROW)
  events = read(tmp_path)
  processes = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
  assert sorted(processes.values()) == ["learner", "s~1"]
  spans = collections.defaultdict(list)
  for event in events:
    if event["ph"] in "be":
      assert (event["cat"], event["id"]) == ("ticket", "train/7/0")
      spans[event["name"], processes[event["pid"]]].append((event["ph"], event["ts"]))
  assert {stage for stage, where in spans if where == "learner"} == {"lease", "queue", "use"}
  assert [stage for stage, _ in spans] == list(types.STAGES)
  for number, found in enumerate(spans.values()):
    assert found == [("b", (1000 + number) * 10**6), ("e", (1001 + number) * 10**6)]
  parts = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
  assert parts == [
    ("waiting", 1_006_250_000, 500_000),
    ("update", 1_006_750_000, 1_000_000),
    ("publishing", 1_007_750_000, 250_000),
  ]


def test_the_parts_of_a_step_do_not_overlap_however_they_are_rounded(tmp_path):
  """Perfetto drops a span that begins within another one of its track and ends behind it."""
  kept = trace.Trace(tmp_path, every=1)
  for step in range(40):
    row = {name: 0.1 + step / 7e6 + i / 3e6 for i, name in enumerate(ROW)}
    kept.step(step, [timeline("a", 1.8e9 + step)], row)
  parts = [(e["ts"], e["ts"] + e["dur"]) for e in read(tmp_path) if e["ph"] == "X"]
  for number in range(0, len(parts), 3):
    (_, first), (second, middle), (third, _) = parts[number : number + 3]
    assert (first, middle) == (second, third)


def test_few_steps_and_few_tickets_of_each_are_in_it(tmp_path):
  kept = trace.Trace(tmp_path, every=10)
  for step in range(25):
    kept.step(step, [timeline(f"train/{step}/{i}", 10.0 * step) for i in range(100)], ROW)
  tickets = collections.Counter(e["args"]["step"] for e in read(tmp_path) if e["ph"] == "b")
  assert tickets == {step: 8 * len(types.STAGES) for step in (0, 10, 20)}


def test_a_resumed_run_goes_on_in_the_same_file_with_the_same_processes(tmp_path):
  trace.Trace(tmp_path, every=1).step(0, [timeline("a", 1.0), timeline("b", 1.0, "t~1")], ROW)
  trace.Trace(tmp_path, every=1).step(1, [timeline("c", 20.0, "t~1")], ROW)
  numbers = collections.defaultdict(set)
  for event in read(tmp_path):
    if event["ph"] == "M":
      numbers[event["args"]["name"]].add(event["pid"])
  assert numbers.keys() == {"learner", "s~1", "t~1"}
  assert all(len(found) == 1 for found in numbers.values())


def test_what_is_unknown_is_left_out_and_nothing_is_written_if_not_wanted(tmp_path):
  trace.Trace(tmp_path, every=0).step(0, [timeline("a", 1.0)], ROW)
  assert not (tmp_path / trace.FILE).exists()
  times = (1.0, *[math.nan] * 5, 6.0, 7.0, 8.0)
  trace.Trace(tmp_path, every=1).step(0, [types.Timeline("a", "s~1", times)], ROW)
  assert [e["name"] for e in read(tmp_path) if e["ph"] == "b"] == ["queue", "use"]


def test_a_disk_that_refuses_ends_no_run(tmp_path):
  (tmp_path / trace.FILE).mkdir()
  trace.Trace(tmp_path, every=1).step(0, [timeline("a", 1.0)], ROW)
