"""The learner: owns prompts, ledger, weights and the loop; samplers come and go."""

import dataclasses
import functools
import json
import logging
import pathlib
import threading
import uuid

import jax
import jax.numpy as jnp

from offpolicy_rl import config as config_lib
from offpolicy_rl import progress, report, types
from offpolicy_rl.learner import audit, checkpoint, loop, step, warm_start
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import pretrained, sharding
from offpolicy_rl.replay import admission, batching, ledger, schedule, store
from offpolicy_rl.roles import parts
from offpolicy_rl.roles.front import Front
from offpolicy_rl.roles.records import Records
from offpolicy_rl.sampler import evaluation
from offpolicy_rl.tasks import catalog, stream
from offpolicy_rl.transport import bounds, codec, security, server

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class _Learner:
  """The learner's parts while it runs."""

  config: object
  run_dir: pathlib.Path
  stop: threading.Event
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  policy: parts.Policy
  screen: progress.Progress
  checkpoints: checkpoint.Checkpoints
  restored: checkpoint.Restored | None
  records: Records
  front: Front
  desk: evaluation.Desk | None = None  # until the prompts are read

  def next_batch(self, at_step: int) -> loop.Consumed:
    """Waits until every group of the step is back."""
    settings = self.config.learner
    ids = admission.ticket_ids(at_step, settings.prompts_per_step)
    groups = None
    while groups is None:
      if self.stop.is_set():  # asked before every batch: there may always be one ready
        raise loop.Stopped
      groups = self.front.book.take(ids, timeout=0.5)
    row = self.records.consumed(
      at_step, groups, last=at_step + 1 == settings.steps, decode=self.policy.words.decode
    )
    self.compare_with_recording(at_step, row)
    batch = batching.make_batch(groups, num_tokens=parts.row_tokens(self.config))
    found = batching.lag_metrics(groups, at_step) | batching.completion_metrics(groups)
    return loop.Consumed(batch, ids, found)

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
    position = {"files": self.records.position(), "evaluations": self.desk.open()}
    versions = self.front.older_versions()
    self.checkpoints.save(version, state, versions=versions, position=position)


def run_learner(
  config, run_dir: pathlib.Path, *, listen: str, resume: bool = False,
  stop: threading.Event | None = None, weights_dir: str | None = None,
  credentials: security.Credentials = security.NONE, reflection: bool = False,
) -> state_lib.TrainState | None:  # fmt: skip
  """Trains to the end of the configuration, or until `stop`; returns the last state.

  None when it was stopped before version 0 existed.

  `listen` and `credentials` were checked already (`security.check_listen_address`). Samplers read
  the weights from `weights_dir`, or get them streamed when it is None.

  Writes into `run_dir`: config.json, address, metrics.jsonl, tensorboard/, checkpoints/, groups/,
  completions.jsonl, lag_schedule.jsonl, ledger.json, report.html.
  """
  session = uuid.uuid4().hex
  published = parts.make_store(config, weights_dir, session)
  me = _make_learner(config, run_dir, stop or threading.Event(), resume, published)
  identity = server.Identity(
    session=session,
    run_id=run_dir.name,
    config_json=config_lib.to_json(config),
    vocabulary_fingerprint=me.policy.words.fingerprint,
    weights_in_directory=weights_dir is not None,
    model_files=me.policy.files,
  )
  wire, address = server.start(
    listen, identity, me.front.handlers(), me.front.weights,
    max_samplers=config.transport.max_samplers, max_message_mb=_largest_request_mb(config),
    credentials=credentials, reflection=reflection,
  )  # fmt: skip
  checkpoint.write_durably(run_dir / "address", address)
  me.screen.say(f"learner at {address} ({security.describe(credentials, listen)})")
  me.screen.say(f"run directory {run_dir}")
  try:
    return _train(me)
  finally:
    _shut_down(me, wire)


def _largest_request_mb(config) -> int:
  """What samplers may need to send: parsing a message takes a multiple of its size."""
  completions = max(config.learner.group_size, config.evaluation.samples)
  most = bounds.max_group_bytes(completions, config.task.max_completion_tokens)
  return min(config.transport.max_message_mb, 1 + (max(most, bounds.PUSH_BYTES) >> 20))


def _make_learner(
  config, run_dir: pathlib.Path, stop: threading.Event, resume: bool, published
) -> _Learner:
  """Reads what there is to resume, then opens the run's files."""
  control = parts.lag_control(config)
  screen = progress.Progress(config.learner.steps)
  run_dir.mkdir(parents=True, exist_ok=True)
  policy = parts.policy_of(config, parts.model_files(config, run_dir))
  choices, mesh = parts.step_choices(config, policy.model), sharding.make_mesh(**config.mesh)
  groups = store.GroupStore(run_dir / "groups", decode=codec.group_of_request)
  saved = checkpoint.Checkpoints(
    run_dir / "checkpoints", keep=config.checkpoint.keep, say=screen.say,
    committed=lambda steps: _prune(saved, groups, steps),
  )  # fmt: skip
  restored = _restore(saved, choices, mesh) if resume else None
  if restored is None:
    if resume:
      screen.say(f"--resume: no checkpoint in {run_dir}, starting from the beginning")
    groups.clear()
  checkpoint.write_durably(run_dir / "config.json", config_lib.to_json(config))
  return _Learner(
    config=config,
    run_dir=run_dir,
    stop=stop,
    choices=choices,
    mesh=mesh,
    policy=policy,
    screen=screen,
    checkpoints=saved,
    restored=restored,
    records=Records(
      run_dir, config_lib.to_json(config), screen,
      position=restored and restored.position["files"], first_step=restored.step if restored else 0,
    ),
    front=Front(
      book=ledger.Ledger(
        config.transport.lease_seconds, reissue_seconds=config.transport.reissue_seconds,
        recover=groups.get,
      ),
      groups=groups,
      weights=published,
      weights_dtype=config.transport.weights_dtype,
      vocab_size=policy.model.vocab_size,
      max_tokens=config.task.max_completion_tokens,
      control=control,
      newest_ever=groups.progress()[0],
    ),
  )  # fmt: skip


def _restore(saved: checkpoint.Checkpoints, choices, mesh) -> checkpoint.Restored | None:
  shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
  shapes = state_lib.shapes(choices.model, choices.optimizer)
  with jax.sharding.set_mesh(mesh):
    return saved.restore(shapes, shardings)


def _prune(saved: checkpoint.Checkpoints, groups: store.GroupStore, steps: list[int]) -> None:
  """Forgets the groups that no checkpoint which is kept can ask for."""
  asked = [row for at in steps for row in saved.position(at)["evaluations"]]
  groups.prune(steps[0], keep=[ticket_id for row in asked for ticket_id in row["ticket_ids"]])


def _train(me: _Learner) -> state_lib.TrainState | None:
  """Warm start or restore, the loop, the last evaluation."""
  config = me.config
  train, heldout = _prompts(me)
  me.desk = evaluation.Desk(
    me.front.book, heldout[: config.evaluation.problems], samples=config.evaluation.samples,
    temperature=config.sampler.temperature, write=me.records.heldout,
  )  # fmt: skip
  with jax.sharding.set_mesh(me.mesh):
    try:
      state, reference = _initial_state(me, train)
    except loop.Stopped:
      me.screen.say("stopped during the warm start; --resume will begin anew")
      return None
    first_step = int(state.step)
    me.front.publish(first_step, state.params)
    if me.restored is None:
      me.desk.ask("after warm start" if config.warm_start.steps else "before", version=0, step=0)
      _save_first(me, state)
    me.front.open(_make_admission(me, train, first_step))
    functions = _loop_parts(me, reference)
    state = loop.run(state, functions, first_step=first_step, num_steps=config.learner.steps)
  me.screen.stop()
  _finish(me, state)
  return state


def _save_first(me: _Learner, state) -> None:
  """Before any training ticket goes out: no acknowledged group is without a state to return to."""
  me.save(0, state)
  me.checkpoints.wait()
  if not me.checkpoints.steps():
    raise checkpoint.CheckpointError(
      f"{me.run_dir}/checkpoints: the first one could not be written"
    )


def _prompts(me: _Learner):
  """(training prompts, held-out prompts)."""
  from offpolicy_rl.tasks import seqio_tasks  # TensorFlow: 7 s and 0.9 GB, only here

  task, words = me.config.task, me.policy.words
  train, skipped = seqio_tasks.load(task.name, catalog.TRAIN_SPLIT, words, task.max_prompt_tokens)
  heldout, _ = seqio_tasks.load(task.name, catalog.HELDOUT_SPLIT, words, task.max_prompt_tokens)
  me.screen.say(
    f"task {task.name}: {len(train)} prompts, {len(heldout)} held out, {skipped} too long"
  )
  if not train or not heldout:
    raise ValueError(
      f"task.max_prompt_tokens: got {task.max_prompt_tokens}, which leaves {len(train)} training "
      f"and {len(heldout)} held-out prompts of task {task.name}; expected at least one of each"
    )
  return train, heldout


def _initial_state(me: _Learner, train):
  """(state, reference parameters or None): restored, or fresh and warm-started."""
  choices, restored = me.choices, me.restored
  wants_reference = choices.objective.choices.needs_reference
  if restored is not None:
    me.screen.say(f"resuming from the checkpoint of step {restored.step}")
    for version, tensors in restored.versions.items():
      me.front.weights.put(version, tensors)
    for row in restored.position["evaluations"]:
      me.desk.ask(row["phase"], version=row["version"], step=row["step"])
    if not wants_reference:
      return restored.state, None
    shardings = state_lib.shardings(choices.model, me.mesh, choices.optimizer).params
    return restored.state, me.checkpoints.restore_initial(restored.state.params, shardings)
  if me.config.model.checkpoint:
    state = _imported_state(me)
  else:
    state = state_lib.create(choices.model, me.mesh, choices.optimizer, me.config.seed)
  if me.config.warm_start.steps:
    me.front.publish(types.RAW_VERSION, state.params)
    me.desk.ask("before warm start", version=types.RAW_VERSION, step=0)
    state = _warm_start(me, state, train)
  if not wants_reference:
    return state, None
  me.checkpoints.save_initial(state.params)
  return state, jax.tree.map(jnp.copy, state.params)


def _imported_state(me: _Learner) -> state_lib.TrainState:
  """The weights of a published checkpoint, each device reading its own part."""
  found = pretrained.Checkpoint(pathlib.Path(me.config.model.checkpoint))
  me.screen.say(f"weights of {found.directory}")
  shardings = state_lib.shardings(me.choices.model, me.mesh, me.choices.optimizer)
  return state_lib.from_params(found.load(shardings.params), me.choices.optimizer, me.mesh)


def _warm_start(me: _Learner, state, train) -> state_lib.TrainState:
  settings = me.config.warm_start
  optimizer = state_lib.make_optimizer(
    learning_rate=settings.learning_rate,
    num_steps=settings.steps,
    warmup_steps=settings.steps // 20,
    # Constant to the end: after a decay to zero, RL's first updates would undo the fine tuning.
    schedule="constant",
  )
  choices = dataclasses.replace(me.choices, optimizer=optimizer)
  demonstrations = stream.PromptStream(train, me.config.seed + 1)

  def next_batch(at_step: int) -> types.Batch:
    chosen = [demonstrations[at_step * settings.rows + i] for i in range(settings.rows)]
    pairs = [(e.prompt_tokens, e.demonstration_tokens) for e in chosen]
    batch = batching.demonstration_batch(pairs, num_tokens=parts.row_tokens(me.config))
    return state_lib.place_batch(me.mesh, batch)

  losses = []

  def write(at_step: int, loss: float) -> None:
    losses.append(loss)
    me.records.warm_start(at_step, loss)
    me.desk.collect()

  state = warm_start.run(
    choices,
    state_lib.from_params(state.params, optimizer, me.mesh),
    num_steps=settings.steps,
    next_batch=next_batch,
    write=write,
    stop_loss=settings.stop_loss,
    should_stop=me.stop.is_set,
  )
  if me.stop.is_set():
    raise loop.Stopped
  me.screen.say(f"warm start ended after {len(losses)} steps, loss {losses[-1]:.3f}")
  return state_lib.from_params(state.params, me.choices.optimizer, me.mesh)


def _make_admission(me: _Learner, train, first_step: int) -> admission.Admission:
  learner, front = me.config.learner, me.front
  make_tickets = functools.partial(
    admission.train_tickets,
    stream=stream.PromptStream(train, me.config.seed),
    lag=front.control,
    prompts_per_step=learner.prompts_per_step,
    group_size=learner.group_size,
    temperature=me.config.sampler.temperature,
  )
  return admission.Admission(
    front.book, front.control, make_tickets, first_step=first_step, num_steps=learner.steps,
    reached=front.groups.reached, known_steps=front.groups.progress()[1],
  )  # fmt: skip


def _loop_parts(me: _Learner, reference) -> loop.Parts:
  """Binds the loop's functions."""
  config = me.config
  compiled = step.compile_step(
    me.choices, state_lib.shardings(me.choices.model, me.mesh, me.choices.optimizer)
  )
  check = audit.LogprobAudit(
    me.choices, me.mesh, every=config.learner.audit_every, max_lag=config.lag.max_lag
  )

  def train_step(at_step, state, batch):
    found = check(at_step, state, batch)
    state, row = compiled(state, state_lib.place_batch(me.mesh, batch), reference)
    return state, row | found

  def write(at_step, row):
    me.records.train(at_step, row | {"sampler/tokens_per_second": me.front.pulse.sampling_rate()})

  def after_step(version, state):
    wanted = config.evaluation.every and version % config.evaluation.every == 0
    if wanted and version < config.learner.steps:
      me.desk.ask("during", version=version, step=version)
    me.desk.collect()
    me.front.forget_old_versions()
    if version % config.checkpoint.every == 0:
      me.save(version, state)

  return loop.Parts(me.next_batch, train_step, me.front.publish, write, after_step)


def _finish(me: _Learner, state) -> None:
  """Last checkpoint, last evaluation (unless stopped early)."""
  version = int(state.step)
  me.save(version, state)
  if me.stop.is_set():
    me.screen.say(f"stopped after step {version}; continue with --resume --run_dir={me.run_dir}")
    return
  me.desk.ask("after", version=version, step=version)
  while not me.desk.collect(timeout=0.5) and not me.stop.is_set():
    pass


def _shut_down(me: _Learner, wire) -> None:
  """Tells samplers that the run is over, writes what is left, prints where to look."""
  me.screen.stop()
  wire.say_not_serving()
  # The next heartbeat comes from whoever is still at work; each leaves when it hears the news.
  transport = me.config.transport
  me.front.dismiss(
    silent_seconds=3 * transport.heartbeat_seconds, at_most_seconds=transport.lease_seconds
  )
  audit_row = me.front.book.audit()
  checkpoint.write_durably(me.run_dir / "ledger.json", json.dumps(audit_row))
  me.checkpoints.close()
  me.front.weights.close()
  me.records.close()
  wire.stop(grace=2.0).wait(10)  # whatever a peer does, the run ends
  me.front.groups.close()
  counts = ", ".join(f"{count} {name}" for name, count in audit_row.items() if count)
  me.screen.say(f"tickets: {counts or 'none'}")
  me.screen.say(f"report: {report.write(me.run_dir)}")
