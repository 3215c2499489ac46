"""The lag schedule: what is written comes back; what no run could follow is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import schedule


def finished(versions, seed=0) -> types.FinishedGroup:
  draw = np.random.default_rng(seed)
  trajectories = tuple(
    types.Trajectory(
      draw.integers(0, 9, 3, np.int32),
      -draw.random(3, np.float32),
      np.array(v, np.int32),
      True,
      1.0,
    )
    for v in versions
  )
  ticket = types.Ticket("train/0/0", "train", 0, 0, np.array([1], np.int32), "", 0, 9, 2, 1.0)
  return types.FinishedGroup(ticket, types.Group("train/0/0", trajectories), 1)


def write(path, rows, header=True):
  lines = [{"config": {"seed": 3}}] * header + rows
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_what_is_written_comes_back(tmp_path):
  groups = [finished([[0, 0, 0]] * 2), finished([[0, 0, 0]] * 2, seed=1)]
  replaced = dataclasses.replace(groups[0].ticket, ticket_id="train/1/5")  # 1 + twice 2 groups
  later = [finished([[1, 1, 1]] * 2), dataclasses.replace(groups[0], ticket=replaced)]
  rows = [schedule.row(0, groups), schedule.row(1, later)]
  read = schedule.read(write(tmp_path / "f", rows))
  assert json.loads(read.config_json) == {"seed": 3}
  assert read.versions == [[0, 0], [1, 0]]
  assert read.oldest == [0, 0, 2]
  assert read.attempts == [[0, 0], [0, 2]]
  assert read.digests[0][0] == schedule.digest(groups[0].group) != read.digests[0][1]


@pytest.mark.parametrize("field", ["tokens", "logprobs", "versions", "reward"])
def test_the_digest_sees_every_field(field):
  first, second = finished([[0, 0, 0]]).group, finished([[0, 0, 0]]).group
  trajectory = second.trajectories[0]
  changed = 0.5 if field == "reward" else getattr(trajectory, field) + 1
  object.__setattr__(trajectory, field, changed)
  assert schedule.digest(first) != schedule.digest(second)


def test_the_digest_sees_what_only_some_completions_have():
  """Candidates and rewinds: a replay must not train on others."""
  group = finished([[0, 0, 0]]).group
  recorded = types.Candidates(np.int32([[4, 2]] * 3), np.float32([[-0.5, -1.0]] * 3))
  others = types.Candidates(recorded.tokens, recorded.logprobs - 1)
  seen = [
    schedule.digest(types.Group("", (dataclasses.replace(group.trajectories[0], **changes),)))
    for changes in (
      {},
      {"candidates": recorded},
      {"candidates": others},
      {"candidates": types.Candidates(recorded.tokens + 1, recorded.logprobs)},
      {"rewinds": (types.Rewind(2, 1),)},
      {"rewinds": (types.Rewind(2, 0),)},
    )
  ]
  assert len(set(seen)) == len(seen)


def test_the_digest_does_not_see_who_sampled_nor_the_verdict_beside_the_reward():
  group = finished([[0, 0, 0]]).group
  other = dataclasses.replace(group, sampler_id="b~2")
  rows = tuple(dataclasses.replace(t, verdict=0.0) for t in group.trajectories)
  assert schedule.digest(other) == schedule.digest(group)
  assert schedule.digest(dataclasses.replace(group, trajectories=rows)) == schedule.digest(group)


def a_row(**changes) -> dict:
  return {"step": 0, "versions": [0], "digests": ["a"], "attempts": [0]} | changes


@pytest.mark.parametrize(
  ("rows", "header", "message"),
  [
    ([], False, "is no lag schedule"),
    ([{"step": 0}], True, "is no lag schedule: KeyError"),
    ([a_row(step=1)], True, r"got steps \[1\].*expected 0, 1, 2"),
    ([a_row(versions=[1])], True, r"got version 1, expected one .*0, 0"),
    ([a_row(versions=[[0, 1]])], True, "step 0, group 0: got version"),
    ([a_row(versions=3)], True, "step 0: got versions 3, .*a list of"),
    ([a_row(digests=[])], True, "one entry per group"),
    ([a_row(attempts=[0, 1])], True, "one entry per group"),
    ([a_row(attempts=[-1])], True, r"got attempts \[-1\], expected counts"),
  ],
)
def test_a_file_that_no_run_can_follow_is_refused(tmp_path, rows, header, message):
  with pytest.raises(schedule.ScheduleError, match=message):
    schedule.read(write(tmp_path / "f", rows, header))


def test_a_file_that_is_no_text_is_refused(tmp_path):
  for content, error in ((b"\x1f\x8b\x08\xff", "UnicodeDecodeError"), (b"[" * 10**5, "RecursionE")):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(schedule.ScheduleError, match=f"f is no lag schedule: {error}"):
      schedule.read(tmp_path / "f")


def test_a_last_line_that_a_kill_cut_is_left_out(tmp_path):
  rows = [schedule.row(step, [finished([[0, 0, 0]])]) for step in (0, 1)]
  path = write(tmp_path / "f", rows)
  whole = path.read_text()
  path.write_text(whole[:-1])  # only its end is missing
  assert len(schedule.read(path).versions) == 2
  path.write_text(whole[:-9])
  assert len(schedule.read(path).versions) == 1
  path.write_text(whole[:-9] + "\n")
  with pytest.raises(schedule.ScheduleError, match="JSONDecodeError"):
    schedule.read(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(schedule.ScheduleError, match="--replay: no file .*nowhere"):
    schedule.read(tmp_path / "nowhere")
