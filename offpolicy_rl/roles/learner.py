"""The learner: owns prompts, ledger, weights and the loop; samplers come and go."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import shlex
import threading
import uuid
from collections.abc import Callable
from typing import NamedTuple

import jax

from offpolicy_rl import config as config_lib
from offpolicy_rl import files, report
from offpolicy_rl.evaluation import requests
from offpolicy_rl.learner import audit, checkpoint, hardware, loop, poison, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.observe import profiling
from offpolicy_rl.replay import admission, refill, set_aside
from offpolicy_rl.roles import build, training
from offpolicy_rl.roles.assembly import Learner, make_learner
from offpolicy_rl.roles.live import Live
from offpolicy_rl.tasks import stream
from offpolicy_rl.transport import hosts, security, server

_LOG = logging.getLogger(__name__)


class Serving(NamedTuple):
  """Where samplers find the learner, and who may. Checked (`security.check_listen_address`)."""

  listen: str
  credentials: security.Credentials = security.NONE
  reflection: bool = False
  weights_dir: str | None = None  # samplers read the weights there; None = they are streamed
  registry: object | None = None  # of prometheus.serve: figures are asked for


def run_learner(
  config,
  run_dir: pathlib.Path,
  serving: Serving,
  *,
  resume: bool = False,
  stop: threading.Event | None = None,
  leader: hosts.Leader | None = None,
  profile: profiling.Plan | None = None,
) -> state_lib.TrainState | None:
  """Trains to the end of the configuration, or until `stop`; returns the last state.

  None when it was stopped before version 0 existed.

  `leader`: of the processes that follow this one (roles/follower.py). `profile`: what to look at.

  Writes into `run_dir`: config.json, address, metrics.jsonl, tensorboard/, checkpoints/, groups/,
  completions.jsonl, lag_schedule.jsonl, live.json, ledger.json, report.html, profile/.
  """
  session = uuid.uuid4().hex
  published = build.make_store(config, serving.weights_dir, session)
  me = make_learner(config, run_dir, stop or threading.Event(), resume, published, leader)
  profile = profiling.left(profile, me.restored.step if me.restored else 0, me.say)
  identity = server.Identity(
    session=session,
    run_id=run_dir.name,
    config_json=config_lib.to_json(config),
    vocabulary_fingerprint=me.policy.words.fingerprint,
    weights_in_directory=serving.weights_dir is not None,
    model_files=me.policy.files,
  )
  live = Live(run_dir, session, config, me.front)
  if serving.registry is not None:
    from offpolicy_rl.observe import prometheus  # who is not asked for figures does without

    serving.registry.register(prometheus.LearnerCollector(live.look))
  handlers = dataclasses.replace(me.front.handlers(), watch=live.news)
  wire, address = server.start(
    serving.listen,
    identity,
    handlers,
    me.front.weights,
    max_samplers=config.transport.max_samplers,
    max_message_mb=config.transport.max_message_mb,
    credentials=serving.credentials,
    reflection=serving.reflection,
  )
  live.begin()
  files.write_durably(run_dir / "address", address)
  me.screen.say(f"learner at {address} ({security.describe(serving.credentials, serving.listen)})")
  me.screen.say(f"run directory {run_dir}")
  for line in build.sampling_notes(config, me.policy):
    me.screen.say(line)
  ended = "failed"
  try:
    state = _train(me, profile)
    ended = "stopped" if me.stop.is_set() else "finished"
    return state
  finally:
    live.end(ended)
    # After an error among several the process ends: nothing can be written without all of them.
    if leader is None or ended != "failed":
      _shut_down(me, wire)


def _train(me: Learner, profile: profiling.Plan | None) -> state_lib.TrainState | None:
  """Warm start or restore, the loop, the last evaluation."""
  config = me.config
  train, heldout = training.prompts(me)
  tickets = _tickets(me, train)
  me.desk = requests.EvaluationRequests(
    me.front.book,
    heldout[: config.evaluation.problems],
    samples=config.evaluation.samples,
    temperature=config.sampler.temperature,
    write=me.records.heldout,
  )
  if config.warm_start.steps:
    me.shown = training.demonstrations(me, train)
  with jax.sharding.set_mesh(me.mesh):
    try:
      state, reference = training.initial_state(me)
    except loop.Stopped:
      me.order(hosts.STOP, 0)
      me.say("stopped during the warm start; --resume will begin anew")
      return None
    first_step = int(state.step)
    me.publishing.now(first_step, state.params)
    if me.restored is None:
      me.ask("after warm start" if config.warm_start.steps else "before", version=0, step=0)
      _save_first(me, state)
    me.front.open(_make_admission(me, tickets, first_step))
    with contextlib.closing(hardware.Speed(me.mesh)) as speed:
      plain = _loop_parts(me, reference, speed)
      with profiling.profiled(plain, profile, me.run_dir, me.say) as functions:
        state = loop.run(state, functions, first_step=first_step, num_steps=config.learner.steps)
    if int(state.step) < config.learner.steps:
      me.order(hosts.STOP, int(state.step))
  me.screen.stop()
  _finish(me, state)
  return state


def _save_first(me: Learner, state) -> None:
  """Before any training ticket goes out: no acknowledged group is without a state to return to."""
  me.save(0, state)
  me.checkpoints.wait()
  if not me.checkpoints.steps():
    raise checkpoint.CheckpointError(
      f"{me.run_dir}/checkpoints: the first one could not be written"
    )


def _tickets(me: Learner, train) -> admission.Tickets:
  """Those of the run's training prompts; the ledger is told what may take the place of which."""
  learner, front = me.config.learner, me.front
  tickets = admission.Tickets(
    stream=stream.of(train, me.config.seed),
    lag=front.control,
    prompts_per_step=learner.prompts_per_step,
    group_size=learner.group_size,
    temperature=me.config.sampler.temperature,
    max_refills=learner.max_refills,
  )
  if learner.max_refills and front.control.recorded is None:  # a replay knows what was used
    me.refills = refill.Refills(tickets.after)
    front.book.replace_by(me.refills)
  me.set_aside = set_aside.SetAside(
    tickets.spare, lambda ticket: me.policy.words.decode(ticket.prompt_tokens.tolist())
  )
  front.book.set_aside_by(me.set_aside)
  return tickets


def _make_admission(
  me: Learner, tickets: admission.Tickets, first_step: int
) -> admission.Admission:
  learner, front = me.config.learner, me.front
  return admission.Admission(
    front.book,
    front.control,
    tickets,
    first_step=first_step,
    num_steps=learner.steps,
    reached=front.groups.reached,
    known_steps=front.groups.progress()[1],
  )


def train_step(me, reference) -> Callable:
  """What every process of a learner does with a batch; see `loop.Parts.train_step`."""
  compiled = step.compile_step(
    me.choices, state_lib.shardings(me.choices.model, me.mesh, me.choices.optimizer)
  )
  every = me.config.learner.audit_every
  check = audit.LogprobAudit(
    me.choices, every=every, max_lag=me.config.lag.max_lag, frozen=reference
  )

  antidote = poison.Antidote(me.choices, me.config.learner.prompts_per_step, reference)

  def update(at_step, state, consumed):
    """The step; made without the groups that poison it, where some do."""
    state, row = compiled(state, consumed.placed, reference)
    bad = antidote.find(state, consumed.placed) if int(row["updates_skipped"]) else []
    if bad and len(bad) < me.config.learner.prompts_per_step:
      for number in bad:
        me.say(loop.poisoned(at_step, number, consumed))
      if not int(state.step) > at_step:
        of_all = {name: row[name] for name in ("row_entropy", "row_log_ratio") if name in row}
        state, row = compiled(state, antidote.without(consumed.placed, bad), reference)
        row |= of_all  # what was left out is part of what its sampler made
    return state, row | {"poisoned_groups": len(bad)}

  def run(at_step, state, consumed):
    """See `loop.Parts.train_step`."""
    found = check(at_step, state, consumed.versions, consumed.placed)
    if me.choices.model.num_experts and every and at_step % every == 0:
      found |= step.router_metrics(me.choices, state.params, consumed.placed, reference)
    if "mismatch/mean" in found and me.config.learner.mismatch_alarm:
      found["alarm/mismatch"] = float(found["mismatch/mean"] > me.config.learner.mismatch_alarm)
    state, row = update(at_step, state, consumed)
    return state, row | found

  return run


def _loop_parts(me: Learner, reference, speed: hardware.Speed) -> loop.Parts:
  """Binds the loop's functions."""
  config = me.config

  def write(at_step, row):
    """The row of a step, with what the other threads count."""
    logprobs = row.pop("policy_logprobs")
    of_front = me.front.pulse.metrics() | {"weights/bytes": me.front.version_bytes}
    row |= me.of_samplers(at_step, row)
    me.records.train(at_step, row | of_front | speed.metrics(row), logprobs)

  def after_step(version, state):
    """See `loop.Parts.after_step`."""
    wanted = config.evaluation.every and version % config.evaluation.every == 0
    if wanted and version < config.learner.steps:
      me.publishing.settle()
      me.ask("during", version=version, step=version)
    me.desk.collect()
    if version % config.checkpoint.every == 0:
      me.save(version, state)

  return loop.Parts(
    me.next_batch, me.begin, train_step(me, reference), me.publishing.soon, write, after_step
  )


def _finish(me: Learner, state) -> None:
  """Last checkpoint, last evaluation (unless stopped early)."""
  version = int(state.step)
  me.save(version, state)
  if me.stop.is_set():
    where = shlex.quote(str(me.run_dir))
    me.screen.say(f"stopped after step {version}; continue with --resume --run_dir={where}")
    return
  if me.restored is not None and me.restored.done and me.restored.step == version:
    me.say(f"all {version} steps are made and evaluated; learner.steps says how many")
    return
  me.ask("after", version=version, step=version)
  while not me.desk.collect(timeout=0.5):
    me.tell_set_aside()
    if me.stop.is_set():
      return
  me.tell_set_aside()
  # Whoever goes on from here keeps the evaluation.
  me.checkpoints.amend(version, {"files": me.records.position(), "done": True})


def _shut_down(me: Learner, wire) -> None:
  """Tells samplers that the run is over, writes what is left, prints where to look."""
  me.screen.stop()
  wire.say_not_serving()
  # The next heartbeat comes from whoever is still at work; each leaves when it hears the news.
  transport = me.config.transport
  me.front.dismiss(
    silent_seconds=3 * transport.heartbeat_seconds, at_most_seconds=transport.lease_seconds
  )
  audit_row = me.front.book.audit()
  files.write_durably(me.run_dir / "ledger.json", json.dumps(audit_row))
  me.checkpoints.close()
  me.publishing.settle()
  me.front.weights.close()
  me.records.close()
  wire.stop(grace=2.0).wait(10)  # whatever a peer does, the run ends
  if me.followers is not None:
    me.followers.end()
  me.front.groups.close()
  counts = ", ".join(f"{count} {name}" for name, count in audit_row.items() if count)
  me.screen.say(f"tickets: {counts or 'none'}")
  me.screen.say(f"report: {report.write(me.run_dir)}")
