"""The first process of a learner: prompts, tickets, samplers and files of a run."""

import dataclasses
import functools
import pathlib
import shlex
import threading
import time
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.evaluation import requests
from offpolicy_rl.learner import checkpoint, loop, speed
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.replay import (
  admission,
  batching,
  replies,
  sampler_stats,
  schedule,
  store,
  timelines,
)
from offpolicy_rl.roles import build, build_learner, multihost, run_files, teacher, training
from offpolicy_rl.roles import checkpoints as checkpoints_lib
from offpolicy_rl.roles import prompts as prompts_lib
from offpolicy_rl.roles.run_files import RunFiles
from offpolicy_rl.roles.sampler_service import SamplerService
from offpolicy_rl.roles.weights import WeightPublisher
from offpolicy_rl.tasks import judge
from offpolicy_rl.transport import codec


@dataclasses.dataclass(frozen=True)
class Leader(training.Process):
  """The first process, which has the prompts, the ledger, the samplers and the run's files."""

  run_dir: pathlib.Path
  stop: threading.Event
  policy: build.Policy
  screen: terminal.Progress
  files: RunFiles
  service: SamplerService
  queue: build_learner.Queue
  evaluations: requests.EvaluationRequests
  warm_start_batch: Callable[[int], types.Batch] | None  # None = no warm start
  orders: multihost.Orders
  speed: speed.Speed

  @functools.cached_property
  def prefetch(self) -> loop.Prefetch:
    """Assembles the next batch while a step runs."""
    return loop.Prefetch(self._assemble, self.config.learner.steps)

  def say(self, text: str) -> None:
    self.screen.say(text)

  def request_evaluation(self, phase: str, *, version: int, step: int) -> None:
    self.evaluations.request(phase, version=version, step=step)

  def demonstrations(self, at_step: int) -> types.Batch:
    """Puts the batch of a step of the warm start on the devices; raises loop.Stopped."""
    assert self.warm_start_batch is not None
    self._check_stop()
    batch = self.warm_start_batch(at_step)
    return self.orders.send_batch(self.mesh, at_step, batch, frozenset())

  def write_warm_start(self, at_step: int, loss: float) -> None:
    """Writes the metrics of a step of the warm start."""
    self.files.write(metrics.WARM_START, at_step, {"loss": loss})
    self.evaluations.collect()

  def start_sampling(self, version: int) -> None:
    """Starts to hand out tickets, first those that this version admits."""
    if not self.checkpoints.steps():
      # An acknowledged group must have a checkpoint to return to.
      raise checkpoint.CheckpointError(
        f"{self.run_dir}/checkpoints: the first one could not be written (why is said above); mend "
        "that and start again, or choose another --checkpoint_dir"
      )
    self.speed.compilations()  # resets the counts, which belong to no step yet
    groups = self.service.groups
    self.service.start(
      admission.Admission(
        self.service.ledger,
        self.service.control,
        self.queue.tickets,
        first_step=version,
        num_steps=self.config.learner.steps,
        reached=groups.reached,
        known_steps=groups.progress()[1],
      )
    )
    if lost := self.service.lost_versions():
      raise checkpoint.CheckpointError(
        f"{self.run_dir}/groups: lacks groups of {len(lost)} versions, the first one {lost[0]}, "
        "whose weights are not in the checkpoint (lag.kept_versions); put the directory back, "
        "or start over with --restart"
      )

  def next_batch(self, at_step: int) -> loop.StepBatch:
    """Waits for the groups of a step, and records them in the run's files."""
    batch = self.prefetch(at_step)
    self._wait_for_samplers()
    self._check_stop()  # in every step, as a batch may always be ready
    batch.metrics["timelines"] = timelines.timelines(batch.groups, time.time())
    last = at_step + 1 == self.config.learner.steps
    row = self.files.write_groups(at_step, batch.groups, last=last, words=self.policy.tokenizer)
    self._compare_with_recording(at_step, row)
    if self.orders.alone:
      return batch
    arrays = self.orders.send_batch(self.mesh, at_step, batch.arrays, batch.versions)
    return dataclasses.replace(batch, arrays=arrays)

  def _wait_for_samplers(self) -> None:
    """Until they need no more versions than lag.kept_versions, this step's included."""
    if not self.service.control.kept:
      return
    self.publisher.wait()
    while len(self.service.ledger.sampled_versions()) > self.service.control.kept:
      self._check_stop()
      self._report_unanswerable()
      time.sleep(0.05)

  def _check_stop(self) -> None:
    if self.stop.is_set():
      self.orders.announce(multihost.STOP)
      raise loop.Stopped

  def _assemble(self, at_step: int, wanted: Callable[[], bool]) -> loop.StepBatch | None:
    """Waits for the groups of a step; None if no longer `wanted`."""
    settings = self.config.learner
    ids = admission.ticket_ids(at_step, settings.prompts_per_step, self.service.control)
    groups = None
    while groups is None:
      if self.stop.is_set() or not wanted():
        return None
      self._report_unanswerable()
      groups = self.service.ledger.take(ids, timeout=0.5)
    started = time.perf_counter()
    limits = build.limits(self.config, group_size=settings.group_size)
    batch = batching.make_batch(groups, limits, config_lib.batch_parts(settings))
    versions = frozenset(np.unique(batch.versions).tolist()) - {types.NO_VERSION}
    if self.orders.alone:
      batch = self.orders.send_batch(self.mesh, at_step, batch, versions)
    row = batching.lag_metrics(groups, at_step) | batching.completion_metrics(groups)
    parts = judge.part_names(judge.rubric(self.config.judge.rubric))
    row |= batching.rubric_metrics(groups, parts)
    row |= {
      "of_completions": sampler_stats.completion_arrays(groups),
      "set_aside": self.queue.unanswerable.count(at_step),
      "flops": speed.step_flops(
        self.choices,
        self.teacher and self.teacher.model,
        batching.lengths(groups),
        layout=settings.layout,
      ),
    }
    if self.queue.dynamic_sampling is not None:
      row |= self.queue.dynamic_sampling.metrics(at_step)
    row["seconds/assembling"] = time.perf_counter() - started
    return loop.StepBatch(batch, versions, tuple(groups), row)

  def _report_unanswerable(self) -> None:
    for line in self.queue.unanswerable.messages():
      self.say(line)

  def _compare_with_recording(self, at_step: int, row: dict) -> None:
    recorded = self.service.control.recorded
    if recorded is None or row["digests"] == recorded.digests[at_step]:
      return
    pairs = zip(row["digests"], recorded.digests[at_step], strict=True)
    group = next(i for i, (new, old) in enumerate(pairs) if new != old)
    raise schedule.ScheduleError(
      f"--replay: step {at_step}, group {group} differs from the recorded one: the runs do not "
      "compute the same (another release, machine or number of devices?)"
    )

  def write(self, at_step: int, row: dict) -> None:
    """Writes the metrics of a step, adding those of samplers and devices."""
    logprobs = row.pop("policy_logprobs")
    row |= self._sampler_metrics(at_step, row) | self.service.heartbeats.metrics()
    row["sampler/rates"] = self.service.heartbeats.rates()
    row |= {"weights/bytes": self.service.version_bytes} | self.speed.metrics(row)
    done = timelines.used(row.pop("timelines"), time.time())
    self.files.write_step(at_step, row | timelines.metrics(done), logprobs, done)

  def _sampler_metrics(self, at_step: int, row: dict) -> dict:
    """Replaces a row's values per completion by values per sampler, and checks for an alarm."""
    per_row = {name: row.pop(f"row_{name}", None) for name in ("entropy", "log_ratio", "mismatch")}
    per_row = {name: np.asarray(x) for name, x in per_row.items() if x is not None}
    stats = self.service.stats
    before = stats.unlike()
    by_sampler = stats.step(row.pop("of_completions") | per_row)
    unlike = stats.unlike()
    for sampler_id in unlike.keys() - before.keys():
      self.say(
        f"alarm, step {at_step + 1}: the tokens of sampler {sampler_id} are unlike the others': "
        f"their log-probabilities are off by {unlike[sampler_id]:.2g} nats in the mean; is its "
        "memory or its model damaged? Its groups are used as long as it runs"
      )
    return {
      **{f"sampler/{name}": values for name, values in by_sampler.items()},
      "sampler/unlike": unlike,
      "alarm/sampler": float(bool(unlike)),
    }

  def after_step(self, version: int) -> None:
    """Requests an evaluation if one is due, and collects complete ones."""
    every = self.config.evaluation.every
    if every and version % every == 0 and version < self.config.learner.steps:
      self.publisher.wait()
      self.request_evaluation("during", version=version, step=version)
    self.evaluations.collect()

  def save(self, version: int, state: state_lib.TrainState) -> None:
    """Starts a checkpoint with everything that is needed to continue from `version`."""
    position: dict = {"files": self.files.position(), "evaluations": self.evaluations.pending()}
    if self.teacher is not None:
      position["teacher"] = self.teacher.fingerprint()
    self.publisher.wait()
    older = self.service.older_versions()
    self.orders.announce(multihost.SAVE, version=version, versions=older)
    versions = {v: self.service.weights.tensors(v) for v in older}
    self.checkpoints.save(version, state, versions=versions, position=position)

  def finish(self, version: int) -> None:
    """Evaluates the last version, unless the run was stopped."""
    self.screen.stop()
    if self.stop.is_set():
      where = shlex.quote(str(self.run_dir))
      self.say(f"stopped after step {version}; continue with --resume --run_dir={where}")
      return
    if self.restored is not None and self.restored.done and self.restored.step == version:
      self.say(f"all {version} steps of learner.steps are done and evaluated")
      return
    self.request_evaluation("after", version=version, step=version)
    while not self.evaluations.collect(timeout=0.5):
      self._report_unanswerable()
      if self.stop.is_set():
        return
    self._report_unanswerable()
    # A run that continues from this checkpoint keeps all evaluations, and repeats none.
    ended = {"files": self.files.position(), "evaluations": self.evaluations.pending()}
    self.checkpoints.amend(version, ended | {"done": True})


def make_leader(
  config: ConfigDict,
  run_dir: pathlib.Path,
  session: str,
  weights_dir: str | None,
  stop: threading.Event,
  *,
  resume: bool,
) -> Leader:
  """Reads the prompts and the checkpoint to resume from, and opens the run's files."""
  control = build_learner.lag_control(config)
  screen = terminal.Progress(config.learner.steps)
  run_dir.mkdir(parents=True, exist_ok=True)
  model_files = build.model_files(config, run_dir, resume=resume)
  build.fill_in(config, model_files)
  policy = build.make_policy(config, model_files)
  found_teacher = teacher.find(config, policy)
  mesh = build.learner_mesh(config)
  choices = build_learner.step_choices(config, policy.model, mesh)
  groups = store.GroupStore(run_dir / "groups", decode=codec.group_of_request)
  checkpoints = checkpoints_lib.opened(config, run_dir, groups, screen)
  newest = checkpoints_lib.newest_step(config, checkpoints, screen) if resume else None
  if newest is not None and found_teacher is not None:
    teacher.require_same(found_teacher, checkpoints.position(newest).get("teacher"))
  orders = multihost.Orders(stop)
  orders.announce(multihost.BEGIN, step=newest, model_files=model_files)
  restored = None if newest is None else checkpoints.restore_for(choices, mesh, newest)
  (groups.clear if restored is None else groups.claim)(codec.GROUP_FORM)
  files = run_files.open_files(config, run_dir, screen, restored)
  prompts, warm_start_batch = _read_prompts(config, policy, files, screen, begins=restored is None)
  queue = build_learner.make_queue(config, policy, prompts.train, control, groups)
  weights = build_learner.make_store(config, policy.model, weights_dir, session)
  service = _sampler_service(config, policy, control, queue, groups, weights, screen)
  return Leader(
    config=config,
    choices=choices,
    mesh=mesh,
    checkpoints=checkpoints,
    restored=restored,
    publisher=WeightPublisher(service.weights, config.transport.weights_dtype, service.published),
    teacher=found_teacher,
    run_dir=run_dir,
    stop=stop,
    policy=policy,
    screen=screen,
    files=files,
    service=service,
    queue=queue,
    evaluations=_evaluations(config, queue, prompts.heldout, files),
    warm_start_batch=warm_start_batch,
    orders=orders,
    speed=speed.Speed(mesh),
  )


def _sampler_service(
  config: ConfigDict,
  policy: build.Policy,
  control,
  queue: build_learner.Queue,
  groups,
  weights,
  screen,
) -> SamplerService:
  return SamplerService(
    queue.ledger,
    groups,
    weights,
    control,
    expected=codec.Expected(
      policy.model.vocab_size, config.task.max_completion_tokens, config.sampler.top_logprobs
    ),
    recording=replies.beside(config.lag.schedule),
    say=screen.say,
  )


def _evaluations(
  config: ConfigDict, queue: build_learner.Queue, heldout: list, files: RunFiles
) -> requests.EvaluationRequests:
  return requests.EvaluationRequests(
    queue.ledger,
    heldout[: config.evaluation.problems],
    samples=config.evaluation.samples,
    temperature=config.sampler.temperature,
    write=functools.partial(files.write, metrics.HELDOUT),
    record=files.write_replies,
  )


def _read_prompts(
  config: ConfigDict, policy: build.Policy, files: RunFiles, screen, *, begins: bool
):
  """Reads (prompts, batches of the warm start or None); `begins`: writes their counts."""
  prompts = prompts_lib.read(config, policy)
  screen.say(prompts.summary)
  warm_start_batch, left_out = None, ""
  if config.warm_start.steps:
    warm_start_batch, left_out = prompts_lib.demonstrations(config, prompts.train)
  if begins:
    files.write_task(prompts.counts)
    if left_out:
      screen.say(left_out)
  return prompts, warm_start_batch
