"""Files of a run directory that are written while it goes on: metrics, completions, status."""

import contextlib
import itertools
import json
import pathlib
import threading
import time

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal, watch
from offpolicy_rl.replay import schedule
from offpolicy_rl.roles.sampler_service import SamplerService
from offpolicy_rl.transport import names

_TEXT_EVERY = 10  # steps between groups kept as text
_STATUS_SECONDS = 2.0  # between two versions of the status file
_LAST_STATUS_SECONDS = 5.0  # for its last version: a hung disk must not keep a run from ending
_LISTED_SECONDS = 300.0  # samplers silent for longer are not listed


class RunFiles:
  """metrics.jsonl, completions.jsonl and lag_schedule.jsonl, which grow with every step."""

  def __init__(
    self,
    run_dir: pathlib.Path,
    config_json: str,
    screen: terminal.Progress,
    *,
    position: dict | None,
    first_step: int,
  ):
    """`position`: of the checkpoint that the run continues from (see `position`); None = none."""
    at = (position or {"metrics": 0, "completions": 0, "schedule": 0}).__getitem__
    self._screen = screen
    self._metrics = metrics.MetricsWriter(run_dir, position=at("metrics"), step=first_step)
    self._completions = metrics.JsonLines(run_dir / "completions.jsonl", at("completions"))
    self._schedule = metrics.JsonLines(run_dir / schedule.FILE, at("schedule"))
    self._text: dict | None = None  # of the step under way, until `train` completes it
    if not at("schedule"):
      self._schedule.append({"config": json.loads(config_json)})

  def position(self) -> dict:
    """Bytes of each file that are safely on disk; a resumed run continues there."""
    return {
      "metrics": self._metrics.position(),
      "completions": self._completions.position(),
      "schedule": self._schedule.position(),
    }

  def write_task(self, counts: dict[str, int]) -> None:
    """Writes how many prompts a new run has, and how many were left out."""
    self._metrics.write(metrics.TASK, 0, counts)

  def write_warm_start(self, step: int, loss: float) -> None:
    """Writes a step of the supervised phase, and shows it."""
    self._write(metrics.WARM_START, step, {"loss": loss})

  def _write(self, kind: str, step: int, row: dict) -> None:
    self._metrics.write(kind, step, row)
    self._screen.row(kind, step, row)

  def write_groups(self, step: int, groups, *, last: bool, words) -> dict:
    """Writes which groups a step is going to use; returns their row of the schedule.

    Now and then one of them is kept as text, until `write_step` can say more about it.
    """
    row = schedule.row(step, groups)
    self._schedule.append(row)
    self._text = _as_text(step, groups[0], words) if step % _TEXT_EVERY == 0 or last else None
    return row

  def write_step(self, step: int, row: dict, logprobs) -> None:
    """Writes a training step and shows it.

    `logprobs`: [G, M] of the tokens of its first group under the policy before the update.
    """
    self._write(metrics.TRAIN, step, row)
    if self._text is not None:
      self._completions.append(_with_log_ratios(self._text, np.asarray(logprobs)))

  def write_heldout(self, step: int, row: dict) -> None:
    """Writes an evaluation, and shows it."""
    self._write(metrics.HELDOUT, step, row)

  def close(self) -> None:
    """Closes the files; everything is on disk afterwards."""
    for file in (self._metrics, self._completions, self._schedule):
      file.close()


def _as_text(step: int, finished: types.FinishedGroup, words) -> dict:
  trajectories = finished.group.trajectories
  return {
    "step": step,
    "sampler": finished.group.sampler_id,
    "version": int(trajectories[0].versions[0]),
    "arrival": finished.arrival_version,
    "prompt": words.decode_all(finished.ticket.prompt_tokens.tolist()),
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
    "pieces": words.token_texts(tokens),
    "versions": [[version, len(list(same))] for version, same in runs],  # [version, tokens]
    "sampler_logprobs": _rounded(trajectory.logprobs),
  }


def _with_log_ratios(text: dict, logprobs: np.ndarray) -> dict:
  """Adds, per token, the learner's log-probability at the update minus the sampler's, in nats."""
  completions = []
  for completion, of_learner in zip(text["completions"], logprobs, strict=True):
    of_sampler = np.array(completion["sampler_logprobs"])
    ratios = _rounded(of_learner[: of_sampler.size] - of_sampler)
    completions.append(completion | {"log_ratios": ratios})
  return text | {"completions": completions}


def _rounded(nats: np.ndarray) -> list[float]:
  """Keeps the file small; + 0.0 turns -0.0 into 0.0."""
  return [round(x, 4) + 0.0 for x in nats.tolist()]


class LiveStatus:
  """The status of a run: for those who watch over the wire, and in RUN/live.json.

  It is put together when somebody looks; a training step does nothing for it.
  """

  def __init__(self, run_dir: pathlib.Path, session: str, config, service: SamplerService):
    """Starts to keep the file up to date."""
    self._run_dir, self._session, self._service = run_dir, session, service
    self._about, self._num_steps = watch.about(config), config.learner.steps
    self._result, self._over = "", threading.Event()
    self._writer = threading.Thread(target=self._keep_writing, daemon=True)
    self._writer.start()

  def status(self) -> types.RunStatus:
    """The status now."""
    service = self._service
    samplers = [s for s in service.heartbeats.statuses() if s.silent_seconds < _LISTED_SECONDS]
    shown = names.shown(sampler.name for sampler in samplers)
    samplers = [
      s._replace(name=shown[s.name], stats=s.stats | service.stats.latest(s.name)) for s in samplers
    ]
    return types.RunStatus(
      session=self._session,
      run_id=self._run_dir.absolute().name,
      about=self._about,
      at=time.time(),
      ended=self._result,
      num_steps=self._num_steps,
      tickets=service.ledger.audit(),
      samplers=tuple(sorted(samplers)),
    )

  def wait_for_update(self, session: str, position: int, seconds: float) -> types.RunUpdate:
    """`news` after so many seconds, or when the run ends; see `server.Handlers.watch`."""
    self._over.wait(seconds)
    return self.news(session, position)

  def news(self, session: str, position: int) -> types.RunUpdate:
    """The status, and the metrics after `position`."""
    return metrics.read_since(self._run_dir, self.status(), session, position)

  def end(self, result: str) -> None:
    """Writes that the run is over: "finished", "stopped" or "failed"."""
    self._result = result
    self._over.set()
    self._writer.join(_LAST_STATUS_SECONDS)

  def _keep_writing(self) -> None:
    while True:
      status = self.status()
      with contextlib.suppress(OSError):  # a full disk must not end a run for this
        watch.write_status(self._run_dir, status)
      if status.ended:
        return
      self._over.wait(_STATUS_SECONDS)
