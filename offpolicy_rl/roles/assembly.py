"""Puts a learner together: reads what there is to resume, opens the run's files."""

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl import types
from offpolicy_rl.evaluation import requests
from offpolicy_rl.learner import checkpoint, loop, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import cost, sharding
from offpolicy_rl.observe import terminal
from offpolicy_rl.replay import (
  admission,
  batching,
  ledger,
  makers,
  packing,
  refill,
  schedule,
  store,
)
from offpolicy_rl.replay import set_aside as set_aside_lib
from offpolicy_rl.roles import build, multihost
from offpolicy_rl.roles.publishing import Publishing
from offpolicy_rl.roles.run_files import Records
from offpolicy_rl.roles.sampler_service import Front
from offpolicy_rl.transport import codec, hosts


@dataclasses.dataclass
class Learner:
  """The learner's parts while it runs."""

  config: object
  run_dir: pathlib.Path
  stop: threading.Event
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  policy: build.Policy
  screen: terminal.Progress
  checkpoints: checkpoint.Checkpoints
  restored: checkpoint.Restored | None
  records: Records
  front: Front
  publishing: Publishing
  followers: hosts.Leader | None = None  # where other processes follow this one
  desk: requests.EvaluationRequests | None = None  # until the prompts are read
  shown: Callable[[int], types.Batch] | None = None  # the warm start's batches; as `desk`
  refills: refill.Refills | None = None  # where groups without signal are replaced
  set_aside: set_aside_lib.SetAside | None = None  # as `desk`

  def say(self, text: str) -> None:
    """A line on the screen."""
    self.screen.say(text)

  def ask(self, phase: str, *, version: int, step: int) -> None:
    """Asks the samplers for an evaluation; its result is booked when it is there."""
    self.desk.request(phase, version=version, step=step)

  def demonstrations(self, at_step: int) -> types.Batch:
    """Of a step of the warm start, on the devices; raises loop.Stopped."""
    if self.stop.is_set():
      raise loop.Stopped
    return self._share(at_step, self.shown(at_step), ())

  def warmed(self, at_step: int, loss: float) -> None:
    """Books a step of the warm start."""
    self.records.warm_start(at_step, loss)
    self.desk.collect()

  def order(self, what: int, at_step: int, versions: Sequence[int] = ()) -> None:
    """What comes next, for the processes that follow."""
    if self.followers is not None:
      self.followers.order(hosts.Order(what, at_step, tuple(versions)))

  def _share(self, at_step: int, batch: types.Batch, versions: Collection[int]) -> types.Batch:
    """A batch on the devices; the processes that follow get what theirs hold."""
    if self.followers is not None:
      arrays = tuple(multihost.leaves(batch))
      self.followers.order(hosts.Order(hosts.BATCH, at_step, tuple(sorted(versions)), arrays))
    return jax.block_until_ready(state_lib.place_batch(self.mesh, batch))

  def next_batch(self, at_step: int, wanted: Callable[[], bool]) -> loop.Consumed:
    """Waits until every group of the step is back; nothing is booked yet."""
    settings, model = self.config.learner, self.choices.model
    ids = admission.ticket_ids(at_step, settings.prompts_per_step, self.front.control)
    groups = None
    while groups is None:
      if self.stop.is_set() or not wanted():
        raise loop.Stopped
      self.tell_set_aside()
      groups = self.front.book.take(ids, timeout=0.5)
    started = time.perf_counter()
    limits = build.limits(self.config, group_size=settings.group_size)
    batch = batching.make_batch(groups, limits, config_lib.batch_parts(settings))
    versions = frozenset(np.unique(batch.versions).tolist()) - {types.NO_VERSION}
    placed = self._share(at_step, batch, versions)
    found = batching.lag_metrics(groups, at_step) | batching.completion_metrics(groups)
    found["of_completions"] = makers.of_completions(groups)
    found["set_aside"] = self.set_aside.count(at_step)
    if self.refills is not None:
      found |= self.refills.metrics(at_step)
    work = cost.work(model, batching.lengths(groups), shared=limits.layout == packing.SHARED)
    found["flops"] = cost.train_flops(model, work) * settings.epochs
    found["seconds/assembling"] = time.perf_counter() - started
    return loop.Consumed(placed, versions, groups, found)

  def of_samplers(self, at_step: int, row: dict) -> dict:
    """Takes what is per completion out of a step's row -> what it says about their samplers."""
    of = {name: row.pop(f"row_{name}", None) for name in ("entropy", "log_ratio", "mismatch")}
    of = {name: np.asarray(x) for name, x in of.items() if x is not None}
    before = self.front.makers.unlike()
    found = self.front.makers.step(row.pop("of_completions") | of)
    unlike = self.front.makers.unlike()
    for sampler_id in unlike.keys() - before.keys():
      self.say(
        f"alarm, step {at_step + 1}: the tokens of sampler {sampler_id} are unlike the others': "
        f"their log-probabilities are {unlike[sampler_id]:.2g} nats off in the mean; is its memory "
        "or its model damaged? Its groups are used for as long as it runs"
      )
    return {
      **{f"sampler/{name}": values for name, values in found.items()},
      "sampler/unlike": unlike,
      "alarm/sampler": float(bool(unlike)),
    }

  def tell_set_aside(self) -> None:
    """Says which prompts no sampler can answer."""
    for line in self.set_aside.told():
      self.say(line)

  def begin(self, at_step: int, consumed: loop.Consumed) -> None:
    """Books what a step is going to use."""
    if self.stop.is_set():  # asked before every step: there may always be a batch ready
      raise loop.Stopped
    last = at_step + 1 == self.config.learner.steps
    row = self.records.consumed(at_step, consumed.groups, last=last, words=self.policy.words)
    self.compare_with_recording(at_step, row)
    self.order(hosts.STEP, at_step)

  def compare_with_recording(self, at_step: int, row: dict) -> None:
    """Stops a replay at the first group that differs from the recorded one."""
    recorded = self.front.control.recorded
    if recorded is None or row["digests"] == recorded.digests[at_step]:
      return
    pairs = zip(row["digests"], recorded.digests[at_step], strict=True)
    group = next(i for i, (new, old) in enumerate(pairs) if new != old)
    raise schedule.ScheduleError(
      f"--replay: step {at_step}, group {group} differs from the recorded one: the two runs do not "
      "compute the same (another release, machine or number of devices?)"
    )

  def save(self, version: int, state: state_lib.TrainState) -> None:
    """Starts a checkpoint: all that `version` needs to go on as if nothing had happened."""
    position = {"files": self.records.position(), "evaluations": self.desk.pending()}
    self.publishing.settle()
    older = self.front.older_versions()
    self.order(hosts.SAVE, version, older)
    versions = {v: self.front.weights.tensors(v) for v in older}
    self.checkpoints.save(version, state, versions=versions, position=position)


def make_learner(
  config,
  run_dir: pathlib.Path,
  stop: threading.Event,
  resume: bool,
  published,
  leader: hosts.Leader | None = None,
) -> Learner:
  """Reads what there is to resume, then opens the run's files."""
  control = build.lag_control(config)
  screen = terminal.Progress(config.learner.steps)
  run_dir.mkdir(parents=True, exist_ok=True)
  files = build.model_files(config, run_dir, resume=resume)
  build.fix_day(config, files)
  policy = build.policy_of(config, files)
  mesh = sharding.make_mesh(**config.mesh)
  choices = build.step_choices(config, policy.model, mesh)
  groups = store.GroupStore(run_dir / "groups", decode=codec.group_of_request)
  saved = checkpoint.Checkpoints(
    run_dir / "checkpoints",
    keep=config.checkpoint.keep,
    say=screen.say,
    committed=lambda steps: _prune(saved, groups, steps),
  )
  newest = _newest(saved, config.learner.steps) if resume else None
  if leader is not None:
    leader.order(
      hosts.Order(hosts.BEGIN, -1 if newest is None else newest, model_files=policy.files)
    )
  restored = None if newest is None else restore(saved, newest, choices, mesh)
  if restored is None and resume:
    screen.say(f"--resume: no checkpoint in {run_dir}, starting from the beginning")
  (groups.clear if restored is None else groups.claim)(codec.GROUP_FORM)
  _write_configuration(config, run_dir)
  front = Front(
    book=_ledger(config.transport, groups),
    groups=groups,
    weights=published,
    vocab_size=policy.model.vocab_size,
    max_tokens=config.task.max_completion_tokens,
    control=control,
    newest_ever=groups.progress()[0],
    say=screen.say,
  )
  return Learner(
    config=config,
    run_dir=run_dir,
    stop=stop,
    choices=choices,
    mesh=mesh,
    policy=policy,
    screen=screen,
    checkpoints=saved,
    restored=restored,
    records=_records(config, run_dir, screen, restored),
    front=front,
    publishing=Publishing(published, config.transport.weights_dtype, front.published),
    followers=leader,
  )


def _ledger(settings, groups: store.GroupStore) -> ledger.Ledger:
  return ledger.Ledger(
    settings.lease_seconds, reissue_seconds=settings.reissue_seconds, recover=groups.get
  )


def _records(config, run_dir: pathlib.Path, screen, restored) -> Records:
  position = restored and restored.position["files"]
  first_step = restored.step if restored else 0
  return Records(
    run_dir, config_lib.to_json(config), screen, position=position, first_step=first_step
  )


def _newest(saved: checkpoint.Checkpoints, steps: int) -> int | None:
  """The step to go on from; ConfigError when the run is to have fewer."""
  newest = saved.newest()
  if newest is not None and newest > steps:
    raise config_lib.ConfigError(
      f"learner.steps: got {steps}, but the run has made {newest}; expected as many at least"
    )
  return newest


def _write_configuration(config, run_dir: pathlib.Path) -> None:
  """Also beside the checkpoints, which another machine may go on from."""
  for folder in (run_dir, run_dir / "checkpoints"):
    folder.mkdir(exist_ok=True)
    files_lib.write_durably(folder / "config.json", config_lib.to_json(config))


def restore(
  saved: checkpoint.Checkpoints, at_step: int, choices: step.StepChoices, mesh: jax.sharding.Mesh
) -> checkpoint.Restored:
  """The checkpoint of a step, laid out on the mesh."""
  shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
  shapes = state_lib.shapes(choices.model, choices.optimizer)
  with jax.sharding.set_mesh(mesh):
    return saved.restore(at_step, shapes, shardings)


def _prune(saved: checkpoint.Checkpoints, groups: store.GroupStore, steps: list[int]) -> None:
  """Forgets the groups that no checkpoint which is kept can ask for."""
  asked = [row for at in steps for row in saved.position(at)["evaluations"]]
  groups.prune(steps[0], keep=[ticket_id for row in asked for ticket_id in row["ticket_ids"]])
