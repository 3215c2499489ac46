"""The commands that train and sample (local, learner, sampler): from flags to an exit code."""

import argparse
import contextlib
import os
import pathlib
import socket
import sys
import time
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import credentials
from offpolicy_rl.environments import environment
from offpolicy_rl.replay import replies
from offpolicy_rl.roles import run_directory
from offpolicy_rl.system import children, signals
from offpolicy_rl.tasks import catalog, scoring, verifiers

if TYPE_CHECKING:
  from prometheus_client import CollectorRegistry

  from offpolicy_rl.observe import profiling

Assignments = list[tuple[str, str]]  # key, text of its value

_LOCAL_ONLY = ("role", "samplers", "run_dir", "tls_ca", "tls_server_name")  # not for its learner


def local(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Runs a learner and its samplers as processes of this machine."""
  from offpolicy_rl.roles import local

  config, _ = configuration(flags, assignments)
  profile_plan(flags, config)  # raises before anything starts
  sampler_flags = credentials.local_sampler_flags(flags)
  sampler_flags += credentials.given(flags, ("weights_dir",))
  learner_flags = credentials.given(flags, [n for n in vars(flags) if n not in _LOCAL_ONLY])
  learner_flags += [f"--config.{key}={text}" for key, text in assignments]
  selection = config_lib.check_data(config)
  _check_environments(config)
  _check_verifiers(selection)
  stop = signals.stop_event()
  # They import while the learner does, as far as there are cores.
  cores = os.cpu_count() or 1
  spares = children.Spares("offpolicy_rl.roles.sampler", min(flags.samplers, max(1, cores - 1)))
  with new_run_directory(flags) as run_dir, contextlib.closing(spares):
    code = local.run(
      learner_flags,
      run_dir=run_dir,
      samplers=flags.samplers,
      stop=stop,
      sampler_args=sampler_flags,
      start_sampler=spares.start,
    )
  return signals.INTERRUPTED if stop.is_set() and code == 0 else code


def _check_verifiers(selection: catalog.Selection) -> None:
  """Raises ConfigError if samplers of this machine can't find or use a verifier."""
  for task in selection.judged:
    ours = task.verifier.startswith("offpolicy_rl.")
    if ours and task.verifier != verifiers.NAMED["code"]:
      continue
    try:
      scoring.require(task.verifier)
    except ValueError as error:
      raise config_lib.ConfigError(f"task.{error}") from None


def _check_environments(config: ConfigDict) -> None:
  """Raises ConfigError if samplers of this machine need an environment and can't use it."""
  try:
    if replies.beside(config.lag.schedule) is None:
      environment.require_all(config_lib.environments(config))
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from None


def learner(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Trains, as a single process or one of several."""
  config, notes = configuration(flags, assignments)
  protection = credentials.for_learner(flags)
  for line in [*notes, *(f"warning: {warning}" for warning in config_lib.warnings(config))]:
    print(line, file=sys.stderr)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  if flags.resume or flags.process_id:  # the run or the first process checks more
    config_lib.check_data(config)
  else:
    from offpolicy_rl.roles import data  # imports JAX

    data.check_start(config)
  stop, plan = signals.stop_event(), profile_plan(flags, config)
  if flags.coordinator:
    return _one_of_several(flags, config, protection, plan, stop)
  with new_run_directory(flags) as run_dir:
    _train(flags, config, run_dir, protection, plan, stop)
  return 0


def _train(flags, config, run_dir: pathlib.Path, protection, plan, stop) -> None:
  run = run_directory.from_flags(str(run_dir), flags.checkpoint_dir)
  resume, restart = flags.resume, flags.restart
  with run_directory.claimed(run, flags.weights_dir, resume=resume, restart=restart, lost=_lost):
    registry = metrics_registry(flags)
    from offpolicy_rl.roles import learner  # imports JAX

    serving = learner.Serving(
      flags.listen, protection, flags.reflection, flags.weights_dir, registry
    )
    learner.run_learner(config, run_dir, serving, resume=resume, stop=stop, profile=plan)


def _lost(text: str) -> None:
  """Ends this process before it writes into a directory that another one has taken."""
  print(f"the learner ends: {text}", file=sys.stderr)
  signals.exit_now(1)


def _one_of_several(flags, config, protection, plan, stop) -> int:
  for flag in ("run_dir", "weights_dir"):
    if not getattr(flags, flag):
      raise config_lib.ConfigError(
        f"--{flag}: missing, expected because --coordinator is given: the processes share it"
      )
  from offpolicy_rl.roles import multihost  # imports JAX

  group = multihost.ProcessGroup(flags.coordinator, flags.num_processes, flags.process_id)
  multihost.join(group)
  signals.stop_event(stop)  # JAX has replaced our handler
  with multihost.ending_together():
    if multihost.check_agreement(config) == 0:
      _train(flags, config, pathlib.Path(flags.run_dir), protection, plan, stop)
    else:
      checkpoints = run_directory.from_flags(flags.run_dir, flags.checkpoint_dir).checkpoints
      multihost.run_follower(config, checkpoints, flags.weights_dir, stop)
  return 0


def sampler(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Serves the learner at --learner."""
  if assignments:
    key = f"--config.{assignments[0][0]}"
    raise config_lib.ConfigError(f"{key}: a sampler is configured by its learner")
  if flags.vllm and not flags.vllm_dir:
    raise config_lib.ConfigError("--vllm_dir: missing, expected because --vllm is given")
  from offpolicy_rl.transport import names

  sampler_id = names.unique(flags.name or f"{socket.gethostname()}-{os.getpid()}")
  wire = credentials.learner_client(flags, flags.learner, sampler_id)
  registry = metrics_registry(flags)
  from offpolicy_rl.roles import sampler  # imports JAX

  vllm = sampler.Vllm(flags.vllm, flags.vllm_dir, flags.vllm_tolerance) if flags.vllm else None
  sampler.run_sampler(
    wire,
    stop=signals.stop_event(),
    abandon=lambda: signals.exit_now(0),
    weights_dir=flags.weights_dir,
    vllm=vllm,
    registry=registry,
  )
  return 0


def configuration(
  flags: argparse.Namespace, assignments: Assignments
) -> tuple[ConfigDict, list[str]]:
  """The checked configuration of local or learner, and notes; see `run_directory.configuration`."""
  checkpoint_dir, weights_dir = (  # learner only
    getattr(flags, name, None) for name in ("checkpoint_dir", "weights_dir")
  )
  if weights_dir and "://" not in weights_dir:  # else in a bucket
    run_directory.require_directory("weights_dir", pathlib.Path(weights_dir))
  return run_directory.configuration(
    run_directory.from_flags(flags.run_dir, checkpoint_dir) if flags.run_dir else None,
    card=flags.config,
    replay=flags.replay,
    resume=flags.resume,
    restart=flags.restart,
    assignments=assignments,
  )


def new_run_directory(flags: argparse.Namespace) -> contextlib.AbstractContextManager[pathlib.Path]:
  """A context manager of --run_dir, or of a new directory named after the card and the time."""
  card = pathlib.Path(flags.config or "replay").resolve()
  name = card.parent.name if card.suffix == ".json" else card.stem
  time_of_start = time.strftime("%Y%m%d-%H%M%S")
  return run_directory.given_or_new(flags.run_dir, "runs", f"{name}-{time_of_start}")


def profile_plan(flags: argparse.Namespace, config: ConfigDict) -> "profiling.Plan | None":
  """The steps to profile, or None; raises ConfigError if there are no such steps."""
  from offpolicy_rl.observe import profiling

  return profiling.plan(flags.profile, flags.profile_memory, config.learner.steps)


def metrics_registry(flags: argparse.Namespace) -> "CollectorRegistry | None":
  """Serves metrics at --metrics_port and returns their registry; None without that flag."""
  if flags.metrics_port is None:
    return None
  from offpolicy_rl.observe import prometheus

  try:
    registry, url = prometheus.serve(flags.metrics_host, flags.metrics_port)
  except prometheus.AddressError as error:
    raise config_lib.ConfigError(str(error)) from None
  print(f"metrics at {url}", flush=True)
  return registry
