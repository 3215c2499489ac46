"""What a run writes for people and for its own continuation: metrics, completions, lag schedule."""

import itertools
import json
import pathlib

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.replay import schedule

_SAMPLE_EVERY = 10  # steps between groups kept as text


class Records:
  """The files of a run directory that grow with every step."""

  def __init__(
    self,
    run_dir: pathlib.Path,
    config_json: str,
    screen: terminal.Progress,
    *,
    position: dict | None,
    first_step: int,
  ):
    """`position`: what `position()` said when the checkpoint was made; None = a new run."""
    at = (position or {"metrics": 0, "completions": 0, "schedule": 0}).__getitem__
    self._screen = screen
    self._metrics = metrics.MetricsWriter(run_dir, position=at("metrics"), step=first_step)
    self._completions = metrics.JsonLines(run_dir / "completions.jsonl", at("completions"))
    self._schedule = metrics.JsonLines(run_dir / schedule.FILE, at("schedule"))
    self._sample: dict | None = None  # of the step under way
    if not at("schedule"):
      self._schedule.append({"config": json.loads(config_json)})

  def position(self) -> dict:
    """Bytes of each file that are safely on disk; a resumed run continues there."""
    return {
      "metrics": self._metrics.position(),
      "completions": self._completions.position(),
      "schedule": self._schedule.position(),
    }

  def task(self, counts: dict[str, int]) -> None:
    """Books how many prompts a new run has, and how many were left out."""
    self._metrics.write(metrics.TASK, 0, counts)

  def warm_start(self, step: int, loss: float) -> None:
    """Books a step of the supervised phase."""
    self._write(metrics.WARM_START, step, {"loss": loss})

  def _write(self, kind: str, step: int, row: dict) -> None:
    self._metrics.write(kind, step, row)
    self._screen.row(kind, step, row)

  def train(self, step: int, row: dict, logprobs) -> None:
    """Books a training step and shows it.

    `logprobs`: [G, M] of the tokens of its first group under the policy before the update.
    """
    self._write(metrics.TRAIN, step, row)
    if self._sample is not None:
      self._completions.append(_compared(self._sample, np.asarray(logprobs)))

  def heldout(self, step: int, row: dict) -> None:
    """Books an evaluation and shows it."""
    self._write(metrics.HELDOUT, step, row)

  def consumed(self, step: int, groups: list[types.FinishedGroup], *, last: bool, words) -> dict:
    """Books which groups a step uses, now and then one of them as text; returns its row.

    The text waits for what the step says about it (`train`).
    """
    row = schedule.row(step, groups)
    self._schedule.append(row)
    wanted = step % _SAMPLE_EVERY == 0 or last
    self._sample = _sample(step, groups[0], words) if wanted else None
    return row

  def close(self) -> None:
    """Everything is on disk afterwards."""
    for file in (self._metrics, self._completions, self._schedule):
      file.close()


def _sample(step: int, finished: types.FinishedGroup, words) -> dict:
  """A group for people, as it was sampled."""
  trajectories = finished.group.trajectories
  return {
    "step": step,
    "sampler": finished.group.sampler_id,
    "version": int(trajectories[0].versions[0]),
    "arrival": finished.arrival_version,
    "prompt": words.whole_text(finished.ticket.prompt_tokens.tolist()),
    "completions": [_completion(t, words) for t in trajectories],
  }


def _completion(trajectory: types.Trajectory, words) -> dict:
  tokens = trajectory.tokens.tolist()
  runs = itertools.groupby(trajectory.versions.tolist())
  return {
    "text": words.decode(tokens),
    "reward": trajectory.reward,
    "verdict": trajectory.verdict,
    "finished": trajectory.finished,
    "pieces": words.texts(tokens),
    "versions": [[version, len(list(same))] for version, same in runs],  # [version, tokens]
    "sampler_logprobs": _rounded(trajectory.logprobs),
  }


def _compared(sample: dict, logprobs: np.ndarray) -> dict:
  """With log-ratios per token: learner at consumption - sampler, nats."""
  completions = []
  for completion, of_learner in zip(sample["completions"], logprobs, strict=True):
    of_sampler = np.array(completion["sampler_logprobs"])
    ratios = _rounded(of_learner[: of_sampler.size] - of_sampler)
    completions.append(completion | {"log_ratios": ratios})
  return sample | {"completions": completions}


def _rounded(nats: np.ndarray) -> list[float]:
  """For people: rounding keeps the file small."""
  return [round(x, 4) + 0.0 for x in nats.tolist()]  # + 0.0: no -0.0
