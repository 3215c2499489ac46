"""The learner: owns prompts, ledger, weights and the loop; samplers come and go."""

import dataclasses
import functools
import json
import logging
import pathlib
import threading
import time
import uuid

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import config as config_lib
from offpolicy_rl import metrics, progress, report, types
from offpolicy_rl.learner import audit, checkpoint, loop, step, warm_start
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import policy, sharding
from offpolicy_rl.replay import admission, batching, lag, ledger
from offpolicy_rl.roles import parts, pulse
from offpolicy_rl.sampler import evaluation
from offpolicy_rl.tasks import catalog, stream
from offpolicy_rl.tasks import vocabulary as vocabulary_lib
from offpolicy_rl.transport import bounds, codec, security, server, weights

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class _Learner:
  """The learner's parts while it runs."""

  config: object
  run_dir: pathlib.Path
  stop: threading.Event
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  book: ledger.Ledger
  store: weights.WeightStore
  writer: metrics.MetricsWriter
  screen: progress.Progress
  checkpoints: checkpoint.Checkpoints
  vocabulary: vocabulary_lib.Vocabulary
  version: int = types.RAW_VERSION
  finished: bool = False
  heard: pulse.Pulse = dataclasses.field(default_factory=pulse.Pulse)

  # -- what samplers ask for

  def handlers(self) -> server.Handlers:
    """The wire's view of the learner."""
    return server.Handlers(
      lease=self.book.lease,
      heartbeat=self.heartbeat,
      finish=self.finish_group,
      run_finished=lambda: self.finished,
    )

  def heartbeat(self, sampler_id: str, stats: dict[str, float]) -> None:
    """Keeps leases alive and remembers how the sampler is doing."""
    self.book.heartbeat(sampler_id)
    self.heard.hear(sampler_id, stats)

  def finish_group(self, group: types.Group) -> str:
    """Checks a group against its ticket and books it."""
    ticket = self.book.ticket(group.ticket_id)
    if ticket is not None:
      codec.check_group(
        group, ticket, vocab_size=self.vocabulary.size,
        max_tokens=self.config.task.max_completion_tokens,
      )  # fmt: skip
    return self.book.finish(group, self.version).value

  # -- the loop's functions

  def publish(self, version: int, params, admit: admission.Admission | None = None) -> None:
    """Makes a version available to samplers and queues the steps it admits."""
    # A real copy: on CPU, device_get gives a view of memory that the next step will reuse.
    host = jax.tree.map(np.array, jax.device_get(params))
    self.store.put(version, policy.flatten(host))
    self.version = version
    if admit is not None:
      admit.published(version)

  def forget_old_versions(self, control: lag.LagControl) -> None:
    """Drops weights that neither an open ticket nor a step to come will ask for."""
    needed = self.book.needed_versions(self.version)
    oldest = control.oldest_needed(self.version)
    self.store.retain(lambda v: v in needed or v >= oldest)

  def next_batch(self, at_step: int) -> loop.Consumed:
    """Waits until every group of the step is back."""
    ids = admission.ticket_ids(at_step, self.config.learner.prompts_per_step)
    while (groups := self.book.take(ids, timeout=0.5)) is None:
      if self.stop.is_set():
        raise loop.Stopped
    if at_step % 10 == 0 or at_step + 1 == self.config.learner.steps:
      self.record_sample(at_step, groups[0])
    batch = batching.make_batch(groups, num_tokens=parts.row_tokens(self.config))
    found = batching.lag_metrics(groups, at_step) | batching.completion_metrics(groups)
    return loop.Consumed(batch, ids, found)

  def record_sample(self, at_step: int, finished: types.FinishedGroup) -> None:
    """Appends one group as text to completions.jsonl, for people."""
    trajectories = finished.group.trajectories
    row = {
      "step": at_step,
      "version": int(trajectories[0].versions[0]),
      "prompt": self.vocabulary.decode(finished.ticket.prompt_tokens.tolist()),
      "completions": [
        {"text": self.vocabulary.decode(t.tokens.tolist()), "reward": t.reward}
        for t in trajectories
      ],
    }
    with (self.run_dir / "completions.jsonl").open("a") as file:
      file.write(json.dumps(row) + "\n")

  def write(self, at_step: int, row: dict) -> None:
    """Books a training step and shows it."""
    rate = self.heard.sampling_rate()
    self.writer.write(metrics.TRAIN, at_step, {**row, "sampler/tokens_per_second": rate})
    self.screen.sampler_rate(rate)
    self.screen.step(at_step, row)

  def write_heldout(self, at_step: int, row: dict) -> None:
    """Books an evaluation and shows it."""
    self.writer.write(metrics.HELDOUT, at_step, row)
    self.screen.heldout(row["heldout/pass@1"])
    if row["phase"] != "during":
      self.screen.say(
        f"held-out {row['phase']}: greedy {row['heldout/greedy']:.3f}, "
        f"pass@1 {row['heldout/pass@1']:.3f} ± {row['heldout/pass@1_stderr']:.3f}, "
        f"pass@{row['heldout/k']} {row['heldout/pass@k']:.3f} ({row['heldout/problems']} problems)"
      )


def run_learner(
  config, run_dir: pathlib.Path, *, listen: str, insecure: bool = False, resume: bool = False,
  stop: threading.Event | None = None,
  credentials: security.Credentials = security.NONE, reflection: bool = False,
) -> state_lib.TrainState | None:  # fmt: skip
  """Trains to the end of the configuration, or until `stop`; returns the last state.

  None when it was stopped before version 0 existed.

  Writes into `run_dir`: config.json, address, metrics.jsonl, tensorboard/, checkpoints/,
  completions.jsonl, report.html.
  """
  security.check_listen_address(listen, credentials, insecure=insecure)
  me = _make_learner(config, run_dir, stop or threading.Event(), resume)
  identity = server.Identity(
    session=uuid.uuid4().hex,
    run_id=run_dir.name,
    config_json=config_lib.to_json(config),
    vocabulary_fingerprint=me.vocabulary.fingerprint,
  )
  wire, address = server.start(
    listen, identity, me.handlers(), me.store,
    max_samplers=config.transport.max_samplers, max_message_mb=_largest_request_mb(config),
    credentials=credentials, reflection=reflection,
  )  # fmt: skip
  _write_atomically(run_dir / "address", address)
  me.screen.say(f"learner at {address} ({security.describe(credentials, listen)})")
  me.screen.say(f"run directory {run_dir}")
  try:
    return _train(me)
  finally:
    _shut_down(me, wire)


def _largest_request_mb(config) -> int:
  """What the run's largest group can need: parsing a message takes a multiple of its size."""
  completions = max(config.learner.group_size, config.evaluation.samples)
  most = bounds.max_group_bytes(completions, config.task.max_completion_tokens)
  return min(config.transport.max_message_mb, 1 + (most >> 20))


def _make_learner(config, run_dir: pathlib.Path, stop: threading.Event, resume: bool) -> _Learner:
  saved = checkpoint.Checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep)
  first_step = saved.latest() if resume else None
  if resume and first_step is None:
    _LOG.warning("--resume: no complete checkpoint in %s, starting from the beginning", run_dir)
  run_dir.mkdir(parents=True, exist_ok=True)
  _write_atomically(run_dir / "config.json", config_lib.to_json(config))
  return _Learner(
    config=config,
    run_dir=run_dir,
    stop=stop,
    choices=parts.step_choices(config),
    mesh=sharding.make_mesh(**config.mesh),
    book=ledger.Ledger(config.transport.lease_seconds),
    store=weights.WeightStore(),
    writer=metrics.MetricsWriter(run_dir, resume_step=first_step),
    screen=progress.Progress(config.learner.steps),
    checkpoints=saved,
    vocabulary=catalog.TASKS[config.task.name].vocabulary,
  )


def _train(me: _Learner) -> state_lib.TrainState | None:
  """Warm start or restore, the loop, the last evaluation."""
  config = me.config
  from offpolicy_rl.tasks import seqio_tasks  # TensorFlow: 7 s and 0.9 GB, only here

  limit = config.task.max_prompt_tokens
  train, skipped = seqio_tasks.load(config.task.name, catalog.TRAIN_SPLIT, limit)
  heldout, _ = seqio_tasks.load(config.task.name, catalog.HELDOUT_SPLIT, limit)
  me.screen.say(
    f"task {config.task.name}: {len(train)} prompts, {len(heldout)} held out, {skipped} too long"
  )
  if not train or not heldout:
    raise ValueError(
      f"task.max_prompt_tokens: got {limit}, which leaves {len(train)} training and "
      f"{len(heldout)} held-out prompts of task {config.task.name}; expected at least one of each"
    )
  desk = evaluation.Desk(
    me.book, heldout[: config.evaluation.problems], samples=config.evaluation.samples,
    temperature=config.sampler.temperature, write=me.write_heldout,
  )  # fmt: skip
  with jax.sharding.set_mesh(me.mesh):
    try:
      state, reference, first_step = _initial_state(me, train, desk)
    except loop.Stopped:
      me.screen.say("stopped during the warm start; --resume will begin anew")
      return None
    control = lag.LagControl(config.lag.mode, config.lag.max_lag, origin=first_step)
    admit = _make_admission(me, control, train, first_step)
    me.publish(first_step, state.params, admit)
    if first_step == 0:
      desk.ask("after warm start" if config.warm_start.steps else "before", version=0, step=0)
    functions = _loop_parts(me, admit, control, desk, reference)
    state = loop.run(state, functions, first_step=first_step, num_steps=config.learner.steps)
  me.screen.stop()
  _finish(me, desk, state)
  return state


def _initial_state(me: _Learner, train, desk: evaluation.Desk):
  """(state, reference parameters or None, first step): restored, or fresh and warm-started."""
  config, choices = me.config, me.choices
  wants_reference = choices.objective.choices.needs_reference
  saved_step = me.checkpoints.latest()
  state = state_lib.create(choices.model, me.mesh, choices.optimizer, config.seed)
  shardings = state_lib.shardings(choices.model, me.mesh, choices.optimizer)
  if saved_step is not None:
    me.screen.say(f"resuming from the checkpoint of step {saved_step}")
    state = me.checkpoints.restore(saved_step, state, shardings)
    reference = (
      me.checkpoints.restore_initial(state.params, shardings.params) if wants_reference else None
    )
    return state, reference, saved_step
  if config.warm_start.steps:
    me.publish(types.RAW_VERSION, state.params)
    desk.ask("before warm start", version=types.RAW_VERSION, step=0)
    state = _warm_start(me, state, train, desk)
  if not wants_reference:
    return state, None, 0
  me.checkpoints.save_initial(state.params)
  return state, jax.tree.map(jnp.copy, state.params), 0


def _warm_start(me: _Learner, state, train, desk) -> state_lib.TrainState:
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
    me.writer.write(metrics.WARM_START, at_step, {"loss": loss})
    if (at_step + 1) % 50 == 0:
      me.screen.say(f"warm start {at_step + 1}: loss {loss:.3f}")
      desk.collect()

  state = warm_start.run(
    choices,
    state_lib.restart(state, optimizer, me.mesh),
    num_steps=settings.steps,
    next_batch=next_batch,
    write=write,
    stop_loss=settings.stop_loss,
    should_stop=me.stop.is_set,
  )
  if me.stop.is_set():
    raise loop.Stopped
  me.screen.say(f"warm start ended after {len(losses)} steps, loss {losses[-1]:.3f}")
  return state_lib.restart(state, me.choices.optimizer, me.mesh)


def _make_admission(me: _Learner, control: lag.LagControl, train, first_step: int):
  learner = me.config.learner
  make_tickets = functools.partial(
    admission.train_tickets,
    stream=stream.PromptStream(train, me.config.seed),
    lag=control,
    prompts_per_step=learner.prompts_per_step,
    group_size=learner.group_size,
    temperature=me.config.sampler.temperature,
  )
  return admission.Admission(
    me.book, control, make_tickets, first_step=first_step, num_steps=learner.steps
  )


def _loop_parts(me: _Learner, admit, control, desk, reference) -> loop.Parts:
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

  def publish(version, params):
    me.publish(version, params, admit)

  def after_step(version, state):
    if (
      config.evaluation.every
      and version % config.evaluation.every == 0
      and version < config.learner.steps
    ):
      desk.ask("during", version=version, step=version)
    desk.collect()
    me.forget_old_versions(control)
    if version % config.checkpoint.every == 0:
      me.checkpoints.save(version, state)

  return loop.Parts(me.next_batch, train_step, publish, me.write, after_step)


def _finish(me: _Learner, desk: evaluation.Desk, state) -> None:
  """Last evaluation (unless stopped early), last checkpoint."""
  version = int(state.step)
  me.checkpoints.save(version, state)
  if me.stop.is_set():
    me.screen.say(f"stopped after step {version}; continue with --resume --run_dir={me.run_dir}")
    return
  desk.ask("after", version=version, step=version)
  while not desk.collect(timeout=0.5) and not me.stop.is_set():
    pass


def _shut_down(me: _Learner, wire) -> None:
  """Tells samplers that the run is over, writes what is left, prints where to look."""
  me.screen.stop()
  me.finished = True
  wire.say_not_serving()
  me.book.close()
  audit_row = me.book.audit()
  _write_atomically(me.run_dir / "ledger.json", json.dumps(audit_row))
  me.checkpoints.close()
  me.writer.close()
  time.sleep(min(2.0, me.config.transport.heartbeat_seconds))  # samplers hear it from a lease
  wire.stop(grace=2.0).wait(10)  # whatever a peer does, the run ends
  me.screen.say(f"ledger: {audit_row}")
  me.screen.say(f"report: {report.write(me.run_dir)}")


def _write_atomically(path: pathlib.Path, text: str) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text)
  temporary.rename(path)
