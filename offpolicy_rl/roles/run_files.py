"""Files that a run writes: metrics, completions, lag schedule and status."""

import contextlib
import itertools
import json
import pathlib
import threading
import time
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl import types
from offpolicy_rl.learner import checkpoint
from offpolicy_rl.observe import metrics, terminal, trace, trackers, watch
from offpolicy_rl.observe import tracking as tracking_lib
from offpolicy_rl.replay import replies, schedule
from offpolicy_rl.roles.sampler_service import SamplerService
from offpolicy_rl.sweep import runs
from offpolicy_rl.tasks.tokenizer import Tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary
from offpolicy_rl.transport import names

_TEXT_EVERY = 10  # steps between groups that are recorded as text
_STATUS_SECONDS = 2.0  # between updates of the status file
_LAST_STATUS_SECONDS = 5.0  # timeout of the last update, in case the disk hangs
_LISTED_SECONDS = 300.0  # samplers silent for longer are not listed


class RunFiles:
  """metrics.jsonl, completions.jsonl, lag_schedule.jsonl, and replies.jsonl of environments."""

  def __init__(
    self,
    run_dir: pathlib.Path,
    config_json: str,
    screen: terminal.Progress,
    *,
    position: dict | None,
    first_step: int,
    tensorboard: bool = True,
    tracking: tracking_lib.Tracking | None = None,
    trace_every: int = 0,
  ):
    """Opens the files.

    Args:
      position: from the checkpoint that the run continues from; None = the run begins.
      trace_every: see `trace.Trace`.
    """
    self._trace = trace.Trace(run_dir, trace_every)
    at = (position or {"metrics": 0, "completions": 0, "schedule": 0}).__getitem__
    self._screen = screen
    self._metrics = metrics.MetricsWriter(
      run_dir, position=at("metrics"), step=first_step, tensorboard=tensorboard
    )
    self._tracking = tracking
    self._tracked_before = (position or {}).get("tracking")
    self._completions = metrics.JsonLines(run_dir / "completions.jsonl", at("completions"))
    self._schedule = metrics.JsonLines(run_dir / schedule.FILE, at("schedule"))
    self._run_dir, self._replies = run_dir, None  # a file once there are episodes
    self._replies_at = (position or {}).get("replies", 0)
    self._text: dict | None = None  # of the current step, completed by `write_step`
    if not at("schedule"):
      self._schedule.append({"config": json.loads(config_json)})
    if tracking is not None:
      tracking.start()

  def position(self) -> dict:
    """Syncs the files and returns where a resumed run continues, for files their sizes in bytes."""
    tracked = self._tracking.position() if self._tracking else self._tracked_before
    return {
      **({"tracking": tracked} if tracked else {}),
      "metrics": self._metrics.position(),
      "completions": self._completions.position(),
      "schedule": self._schedule.position(),
      "replies": self._replies.position() if self._replies else self._replies_at,
    }

  def write_task(self, counts: dict[str, int]) -> None:
    """Writes the counts of used and left-out prompts of a new run."""
    self._write_row(metrics.TASK, 0, counts)

  def write(self, kind: str, step: int, row: dict) -> None:
    """Writes a row of metrics and shows it on the terminal."""
    self._write_row(kind, step, row)
    self._screen.row(kind, step, row)

  def _write_row(self, kind: str, step: int, row: dict) -> None:
    self._metrics.write(kind, step, row)
    if self._tracking is not None:
      self._tracking.write(kind, step, row)

  def write_groups(
    self,
    step: int,
    groups: Sequence[types.FinishedGroup],
    *,
    last: bool,
    words: Tokenizer | Vocabulary,
  ) -> dict:
    """Records the groups of a step in the schedule; returns their row.

    In some steps `write_step` also records one group as text.
    """
    self.write_replies(groups)
    row = schedule.row(step, groups)
    self._schedule.append(row)
    self._text = _as_text(step, groups[0], words) if step % _TEXT_EVERY == 0 or last else None
    return row

  def write_replies(self, groups: Sequence[types.FinishedGroup]) -> None:
    """Records what environments said in these groups."""
    for finished in groups:
      if any(t.ended for t in finished.group.trajectories):
        path = self._run_dir / replies.FILE
        self._replies = self._replies or metrics.JsonLines(path, self._replies_at)
        self._replies.append(replies.row(finished.group))

  def write_step(
    self, step: int, row: dict, logprobs: ArrayLike, timelines: Sequence[types.Timeline] = ()
  ) -> None:
    """Writes a training step.

    Args:
      logprobs: float [G, M], those of its first group under the policy before the update.
      timelines: of its tickets.
    """
    self.write(metrics.TRAIN, step, row)
    self._trace.step(step, timelines, row)
    if self._text is not None:
      self._completions.append(_with_log_ratios(self._text, np.asarray(logprobs)))

  def close(self) -> None:
    """Closes the files."""
    for file in (self._metrics, self._completions, self._schedule, self._replies):
      if file is not None:
        file.close()

  def finish(self, result: str) -> None:
    """Ends the run in its trackers, once its last file is written; `result` as for `Tracker`."""
    if self._tracking is not None:
      self._tracking.finish(result)


def _as_text(step: int, finished: types.FinishedGroup, words) -> dict:
  trajectories = finished.group.trajectories
  return {
    "step": step,
    "sampler": finished.group.sampler_id,
    "version": int(finished.group.sampled_versions()[0]),
    "arrival": finished.arrival_version,
    "prompt": words.decode_all(finished.ticket.prompt_tokens.tolist()),
    "completions": [_completion(t, words) for t in trajectories],
  }


def _completion(trajectory: types.Trajectory, words) -> dict:
  tokens = trajectory.tokens.tolist()
  runs = itertools.groupby(trajectory.versions.tolist())
  return {
    "text": text_of(words, trajectory),
    "reward": trajectory.reward,
    "verdict": trajectory.verdict,
    "finished": trajectory.finished,
    "pieces": words.token_texts(tokens),
    # [version, tokens]; null = the environment wrote them
    "versions": [
      [None if version == types.NO_VERSION else version, len(list(same))] for version, same in runs
    ],
    "sampler_logprobs": _rounded(trajectory.logprobs),
    **_episode(trajectory),
  }


def text_of(words: Tokenizer | Vocabulary, trajectory: types.Trajectory) -> str:
  """A completion up to its end; of an episode everything, with special tokens by name."""
  tokens = trajectory.tokens.tolist()
  return words.decode_special(tokens) if trajectory.ended else words.decode(tokens)


def _episode(trajectory: types.Trajectory) -> dict:
  if not trajectory.ended:
    return {}
  episode = {"ended": trajectory.ended, "turn_rewards": trajectory.turn_rewards}
  return episode | ({"rewinds": trajectory.rewinds} if trajectory.rewinds else {})


def _with_log_ratios(text: dict, logprobs: np.ndarray) -> dict:
  """Adds the log-ratio learner - sampler of each token at the update, in nats."""
  completions = []
  for completion, learner_logprobs in zip(text["completions"], logprobs, strict=True):
    sampler_logprobs = np.array(completion["sampler_logprobs"])
    ratios = _rounded(learner_logprobs[: sampler_logprobs.size] - sampler_logprobs)
    completions.append(completion | {"log_ratios": ratios})
  return text | {"completions": completions}


def _rounded(nats: np.ndarray) -> list[float]:
  return [round(x, 4) + 0.0 for x in nats.tolist()]  # + 0.0 turns -0.0 into 0.0


def open_files(
  config: ConfigDict,
  run_dir: pathlib.Path,
  screen: terminal.Progress,
  restored: checkpoint.Restored | None,
) -> RunFiles:
  """Writes the configuration, and opens the files where the restored checkpoint ends."""
  # Also next to the checkpoints, from which another machine may continue.
  config_json = config_lib.to_json(config)
  for folder in (run_dir, run_dir / "checkpoints"):
    folder.mkdir(exist_ok=True)
    files_lib.write_durably(folder / "config.json", config_json)
  position = restored and restored.position["files"]
  first_step = restored.step if restored else 0
  return RunFiles(
    run_dir,
    config_json,
    screen,
    position=position,
    first_step=first_step,
    tensorboard=metrics.TENSORBOARD in config.tracker.split(","),
    tracking=_tracking(config, run_dir, screen, position),
    trace_every=config.trace_every,
  )


def _tracking(
  config: ConfigDict, run_dir: pathlib.Path, screen: terminal.Progress, position: dict | None
) -> tracking_lib.Tracking | None:
  """The trackers of a run besides TensorBoard, if any; the runs of a sweep form a group."""
  names = [name for name in config.tracker.split(",") if name != metrics.TENSORBOARD]
  if not names:
    return None
  run_dir = run_dir.absolute()
  group = run_dir.parent.name if (run_dir.parent / runs.FILE).exists() else ""
  before = position.get("tracking", {}) if position else None  # {}: there was no tracker yet
  packages = {name: trackers.PACKAGES[name] for name in names}
  return tracking_lib.Tracking(
    packages, run_dir, config_lib.flatten(config), screen.say, group=group, position=before
  )


class LiveStatus:
  """The status of a run, for watchers and in RUN/live.json; collected without training's help."""

  def __init__(
    self, run_dir: pathlib.Path, session: str, config: ConfigDict, service: SamplerService
  ):
    """Starts a thread that keeps the file up to date."""
    self._run_dir, self._session, self._service = run_dir, session, service
    self._about, self._num_steps = watch.about(config), config.learner.steps
    self._result, self._over = "", threading.Event()
    self._writer = threading.Thread(target=self._keep_writing, daemon=True)
    self._writer.start()

  def status(self) -> types.RunStatus:
    """Collects the current status."""
    service = self._service
    samplers = [s for s in service.heartbeats.statuses() if s.silent_seconds < _LISTED_SECONDS]
    shown = names.display_names(sampler.name for sampler in samplers)
    restarts = service.restarts()
    samplers = [
      s._replace(name=shown[s.name], stats=s.stats | service.stats.latest(s.name) | more)
      for s in samplers
      for n in [restarts.get(names.name_of(s.name), 0)]
      for more in [{"restarts": float(n)} if n else {}]
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
    """`update_since` after some seconds, or at the run's end; see `server.Handlers.watch`."""
    self._over.wait(seconds)
    return self.update_since(session, position)

  def update_since(self, session: str, position: int) -> types.RunUpdate:
    """Returns the status and the rows of metrics after `position`."""
    return metrics.read_since(self._run_dir, self.status(), session, position)

  def end(self, result: str) -> None:
    """Writes that the run is over: "finished", "stopped" or "failed"."""
    self._result = result
    self._over.set()
    self._writer.join(_LAST_STATUS_SECONDS)

  def _keep_writing(self) -> None:
    while True:
      status = self.status()
      with contextlib.suppress(OSError):  # the run goes on if the disk is full
        watch.write_status(self._run_dir, status)
      if status.ended:
        return
      self._over.wait(_STATUS_SECONDS)
