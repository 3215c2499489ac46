"""What a step writes for people goes on exactly where a checkpoint stood."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.replay import replies
from offpolicy_rl.roles import run_files
from offpolicy_rl.tasks.vocabulary import EOS, Vocabulary

WORDS = Vocabulary()
ROW = {
  "reward": 0.5,
  "entropy": 0.25,
  "lag/mean": 3.0,
  "tokens": 600,
  "sampler/tokens_per_second": 1.0,
  "seconds/waiting": 0.1,
  "seconds/step": 0.2,
  "seconds/publishing": 0.0,
}


def opened(run_dir, position=None, first_step=0) -> run_files.RunFiles:
  screen = terminal.Progress(100, Console(file=io.StringIO()))
  return run_files.RunFiles(run_dir, "{}", screen, position=position, first_step=first_step)


def group(step: int) -> types.FinishedGroup:
  """Answers 7 and 12; the second one was sampled with two versions."""
  first, second = [*WORDS.encode("7"), EOS], [*WORDS.encode("12"), EOS]
  made = lambda tokens, versions, reward: types.Trajectory(
    np.array(tokens, np.int32),
    np.full(len(tokens), -0.5, np.float32),
    np.array(versions, np.int32),
    True,
    reward,
  )
  found = made(first, [step] * 2, 1.0), made(second, [step, step + 1, step + 1], 0.0)
  name = f"train/{step}/0"
  prompt = np.array(WORDS.encode("3+4="), np.int32)
  ticket = types.Ticket(name, types.TRAIN, step, 0, prompt, "", 0, 9, 2, 1.0)
  return types.FinishedGroup(ticket, types.Group(name, found, sampler_id="s~1"), step + 1)


def make_steps(files: run_files.RunFiles, steps, end: int = 100) -> None:
  logprobs = np.array([[-0.25, -0.5, 0.0, 0.0], [-0.5, -1.0, -0.50004, 0.0]], np.float32)
  for step in steps:
    files.write_groups(step, [group(step)], last=step + 1 == end, words=WORDS)
    files.write_step(step, ROW, logprobs)


def test_a_group_is_written_with_what_the_step_says_about_it(tmp_path):
  files = opened(tmp_path)
  make_steps(files, [0])
  files.close()
  [row] = metrics.read_lines(tmp_path / "completions.jsonl")
  first, second = row.pop("completions")
  assert row == {"step": 0, "sampler": "s~1", "version": 0, "arrival": 1, "prompt": "3+4="}
  assert first == {
    "text": "7",
    "reward": 1.0,
    "verdict": 1.0,
    "finished": True,
    "pieces": ["7", "<eos>"],
    "versions": [[0, 2]],
    "sampler_logprobs": [-0.5, -0.5],
    "log_ratios": [0.25, 0.0],
  }
  assert second["versions"] == [[0, 1], [1, 2]] and second["pieces"] == ["1", "2", "<eos>"]
  assert second["log_ratios"] == [0.0, -0.5, 0.0]
  assert str(second["log_ratios"][2]) == "0.0"  # not -0.0


def test_one_group_of_every_tenth_step_and_of_the_last_is_written(tmp_path):
  files = opened(tmp_path)
  make_steps(files, range(25), end=25)
  files.close()
  rows = metrics.read_lines(tmp_path / "completions.jsonl")
  assert [row["step"] for row in rows] == [0, 10, 20, 24]
  assert [row["step"] for row in metrics.read(tmp_path)] == list(range(25))


def episodes(step: int) -> types.FinishedGroup:
  """The group of a step, as if an environment had written the second token."""
  made = group(step)
  rows = [
    dataclasses.replace(t, versions=np.where(np.arange(t.tokens.size) == 1, -2, 3), ended="done")
    for t in made.group.trajectories
  ]
  return dataclasses.replace(made, group=dataclasses.replace(made.group, trajectories=tuple(rows)))


def test_what_environments_said_is_there_once_after_a_resume(tmp_path):
  files = opened(tmp_path)
  files.write_replies([group(0)])
  assert not (tmp_path / replies.FILE).exists()
  positions = []
  for step in range(6):
    positions.append(files.position())
    files.write_groups(step, [episodes(step)], last=False, words=WORDS)
  files.close()
  whole = (tmp_path / replies.FILE).read_text()
  for stood, position in enumerate(positions):
    files = opened(tmp_path, position, first_step=stood)
    for step in range(stood, 6):
      files.write_replies([episodes(step)])
    assert files.position()["replies"] == len(whole)
    files.close()
    assert (tmp_path / replies.FILE).read_text() == whole
  assert len(whole.splitlines()) == 6


@pytest.mark.parametrize("stood", [10, 11, 15])
def test_a_resumed_run_writes_the_same_files(tmp_path, stood):
  whole, torn = tmp_path / "whole", tmp_path / "torn"
  for folder in (whole, torn):
    folder.mkdir()
  files = opened(whole)
  make_steps(files, range(25))
  files.close()
  files = opened(torn)
  make_steps(files, range(stood))
  position = files.position()
  make_steps(files, range(stood, 21))
  files.write_groups(21, [group(21)], last=False, words=WORDS)  # killed in the middle of this step
  files.close()
  files = opened(torn, position, first_step=stood)
  make_steps(files, range(stood, 25))
  files.close()
  for name in ("completions.jsonl", "metrics.jsonl", "lag_schedule.jsonl"):
    assert (torn / name).read_text() == (whole / name).read_text()
