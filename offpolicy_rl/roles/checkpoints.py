"""The checkpoints of a run, and the groups on disk that they need."""

import pathlib

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl.learner import checkpoint
from offpolicy_rl.observe import terminal
from offpolicy_rl.replay import store


def opened(
  config: ConfigDict, run_dir: pathlib.Path, groups: store.GroupStore, screen: terminal.Progress
) -> checkpoint.Checkpoints:
  """Opens the checkpoints; a new one lets go of the groups that only older ones need."""
  checkpoints = checkpoint.Checkpoints(
    run_dir / "checkpoints",
    keep=config.checkpoint.keep,
    say=screen.say,
    committed=lambda steps: _prune(checkpoints, groups, steps),
  )
  return checkpoints


def newest_step(
  config: ConfigDict, checkpoints: checkpoint.Checkpoints, screen: terminal.Progress
) -> int | None:
  """Finds the step of the newest checkpoint; ConfigError if learner.steps is smaller."""
  newest = checkpoints.newest()
  if newest is None:
    screen.say("--resume: there is no checkpoint, starting from the beginning")
  elif newest > config.learner.steps:
    raise config_lib.ConfigError(
      f"learner.steps: got {config.learner.steps}, expected at least the {newest} that the run has "
      "made"
    )
  return newest


def _prune(checkpoints, groups: store.GroupStore, steps: list[int]) -> None:
  open_rows = [row for at in steps for row in checkpoints.position(at)["evaluations"]]
  groups.prune(steps[0], keep=[ticket_id for row in open_rows for ticket_id in row["ticket_ids"]])
