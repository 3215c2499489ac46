"""A learner from its configuration to its last file. Groups: leader.py, updates: training.py."""

import contextlib
import json
import pathlib
import threading
import time
import uuid
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl import report
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.observe import profiling
from offpolicy_rl.roles import build, multihost, training
from offpolicy_rl.roles.leader import Leader, make_leader
from offpolicy_rl.roles.run_files import LiveStatus
from offpolicy_rl.transport import client, protocol, security, server


class Serving(NamedTuple):
  """Address and protection of the learner; checked by `security.check_listen_address`."""

  listen: str
  credentials: security.Credentials = security.NONE
  reflection: bool = False
  weights_dir: str | None = None  # samplers read the weights there; None = they are streamed
  registry: Any = None  # of prometheus.serve; None = no metrics for Prometheus


def run_learner(
  config: ConfigDict,
  run_dir: pathlib.Path,
  serving: Serving,
  *,
  resume: bool = False,
  stop: threading.Event | None = None,
  profile: profiling.Plan | None = None,
) -> state_lib.TrainState | None:
  """Trains all steps of the configuration, or until `stop`; returns the last state.

  None if it was stopped before version 0. In a learner of several processes (roles/multihost.py),
  the first one calls this.

  Writes into `run_dir`: config.json, address, metrics.jsonl, tensorboard/, checkpoints/, groups/,
  completions.jsonl, lag_schedule.jsonl, replies.jsonl, live.json, ledger.json, report.html,
  profile/.
  """
  session = uuid.uuid4().hex
  learner = make_leader(
    config, run_dir, session, serving.weights_dir, stop or threading.Event(), resume=resume
  )
  live = LiveStatus(run_dir, session, config, learner.service)
  wire, result, served_since = None, "failed", 0.0
  first_step = learner.restored.step if learner.restored else 0
  profile = profiling.left(profile, first_step, learner.say)
  around = lambda functions: profiling.profiled(functions, profile, run_dir, learner.say)
  try:
    wire, served_since = _serve(learner, serving, session, live), time.monotonic()
    state = training.train(learner, around)
    if state is not None:
      learner.finish(int(state.step))
    result = "stopped" if learner.stop.is_set() else "finished"
    return state
  finally:
    live.end(result)
    # After an error one of several processes just ends: writing needs all of them.
    if wire is not None and (learner.orders.alone or result != "failed"):
      _shut_down(learner, wire, result, served_since)


def _serve(learner: Leader, serving: Serving, session: str, live: LiveStatus) -> server.Server:
  config = learner.config
  identity = protocol.Identity(
    session=session,
    run_id=learner.run_dir.name,
    config_json=config_lib.to_json(config),
    vocabulary_fingerprint=learner.policy.tokenizer.fingerprint,
    weights_in_directory=serving.weights_dir is not None,
    model_files=learner.policy.files,
  )
  if serving.registry is not None:
    from offpolicy_rl.observe import prometheus  # imported only if used

    serving.registry.register(prometheus.LearnerCollector(live.update_since))
  wire, address = server.start(
    serving.listen,
    identity,
    learner.service.handlers(live.wait_for_update),
    learner.service.weights,
    max_samplers=config.transport.max_samplers,
    max_message_mb=config.transport.max_message_mb,
    credentials=serving.credentials,
    reflection=serving.reflection,
  )
  files_lib.write_durably(learner.run_dir / "address", address)
  learner.say(f"learner at {address} ({security.describe(serving.credentials, serving.listen)})")
  learner.say(f"run directory {learner.run_dir}")
  for line in build.sampling_notes(config, learner.policy):
    learner.say(line)
  return wire


def _shut_down(learner: Leader, wire: server.Server, result: str, served_since: float) -> None:
  """Tells samplers that the run is over, closes everything, prints the path of the report."""
  learner.screen.stop()
  learner.prefetch.close()
  wire.say_not_serving()
  # Samplers at work learn from their next heartbeat that the run is over, and leave. Those of a
  # learner that was killed may still be looking for this one.
  transport = learner.config.transport
  learner.service.dismiss(
    silent_seconds=3 * transport.heartbeat_seconds,
    at_most_seconds=transport.lease_seconds,
    not_before=served_since + client.RETURN_SECONDS if learner.restored else 0.0,
  )
  with contextlib.ExitStack() as ending:  # the last one first; all of them, whatever fails
    ending.callback(learner.files.finish, result)
    ending.callback(lambda: learner.say(f"report: {report.write(learner.run_dir)}"))
    ending.callback(_count_tickets, learner)
    ending.callback(learner.service.groups.close)
    ending.callback(learner.orders.announce, multihost.END)
    ending.callback(lambda: wire.stop(grace=2.0).wait(10))  # a peer must not keep the run alive
    ending.callback(learner.speed.close)
    ending.callback(learner.files.close)
    ending.callback(learner.publisher.close)
    ending.callback(learner.checkpoints.close)


def _count_tickets(learner: Leader) -> None:
  tickets = learner.service.ledger.audit()
  files_lib.write_durably(learner.run_dir / "ledger.json", json.dumps(tickets))
  counts = ", ".join(f"{count} {name}" for name, count in tickets.items() if count)
  learner.say(f"tickets: {counts or 'none'}")
