"""The commands that neither train nor sample: arguments and assignments in, exit code out."""

import json
import math
import os
import pathlib
import sys
import time

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import arguments as arguments_lib
from offpolicy_rl.cli import flag_values
from offpolicy_rl.system import output


def sweep(arguments, assignments, stop_on_signals) -> int:
  """Many runs of a card; 1 when some are not finished. `stop_on_signals` makes an event."""
  from offpolicy_rl.sweep import command

  return command.run(arguments, assignments, stop_on_signals)


def eval_(arguments, assignments) -> int:
  """Greedy accuracy, pass@k and majority vote of a checkpoint or of a run."""
  from offpolicy_rl.config import evaluation

  ks = evaluation.numbers(arguments.k)
  pairs = [arguments_lib.key_and_text(a) for a in assignments]
  config, problems = evaluation.configuration(arguments, pairs, ks)
  config_lib.check_data(config)
  source = pathlib.Path(arguments.run_dir or arguments.checkpoint).resolve()
  if arguments.out and pathlib.Path(arguments.out).exists():
    raise config_lib.ConfigError(
      f"--out: {arguments.out} is there already, expected a new directory"
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  from offpolicy_rl.roles import evaluate, resuming  # imports JAX

  name = f"{source.name}-{config.task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
  with resuming.directory(arguments.out, pathlib.Path("evals"), name) as out:
    evaluate.run(
      config,
      ks=ks,
      split=arguments.split,
      problems=problems,
      out=out,
      run_dir=source if arguments.run_dir else None,
    )
  return 0


def check(arguments, assignments) -> int:
  """Reads all prompts of a card and says what a run would make of them."""
  config = config_lib.load(arguments.config)
  config_lib.override(config, [arguments_lib.key_and_text(a) for a in assignments])
  config_lib.validate(config)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  from offpolicy_rl.roles import data_check  # imports JAX

  data_check.run(config)
  return 0


def plan(arguments, assignments) -> int:
  """Compiles a card for a topology; 3 when it does not fit."""
  from offpolicy_rl.planning import topology

  topology.kind(arguments.topology)
  config = config_lib.load(arguments.config)
  config_lib.override(config, [arguments_lib.key_and_text(a) for a in assignments])
  config_lib.validate(config)
  architecture = _architecture(arguments, config)
  topology.prepare_environment()
  from offpolicy_rl.planning import plan as planner  # imports JAX

  found = planner.run(
    config, arguments.topology, architecture=architecture, cache=pathlib.Path(arguments.cache)
  )
  planner.show(found)
  if arguments.json:
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")
  return 0 if all(program["fits"] for program in found["programs"]) else 3


def _architecture(arguments, config) -> dict:
  """config.json of the card's published model: from the checkpoint, or as it is known to be."""
  if not config.model.checkpoint:
    raise config_lib.ConfigError("model.checkpoint: got '', expected a published model to plan for")
  from offpolicy_rl.planning import architectures

  path = pathlib.Path(arguments.architecture or config.model.checkpoint)
  file = path / "config.json" if path.is_dir() else path
  if file.is_file():
    return json.loads(file.read_text())
  if path.name in architectures.KNOWN:
    return architectures.KNOWN[path.name]
  raise config_lib.ConfigError(
    f"--architecture: no file {file}, expected config.json of the model or one of "
    f"{', '.join(architectures.KNOWN)}"
  )


def watch(arguments, credentials) -> int:
  """Shows a live run; 130 when interrupted. `credentials()`: checked ones, for an address."""
  from offpolicy_rl.observe import watch as screen

  console = output.console(soft_wrap=not sys.stdout.isatty())
  try:
    screen.run(_watched(arguments, credentials), console, once=arguments.once)
  except KeyboardInterrupt:
    return 130
  return 0


def _watched(arguments, credentials):
  """The source of news that RUN names."""
  from offpolicy_rl.observe import watch as screen

  run_dir = pathlib.Path(arguments.run)
  if (run_dir / "config.json").is_file():
    return screen.of_directory(run_dir)
  if run_dir.is_dir() or not flag_values.is_peer(arguments.run):
    raise config_lib.ConfigError(
      f"RUN: got {arguments.run!r}, expected a directory with the config.json of a run, or the "
      f"HOST:PORT of a learner, the port from 1 to {flag_values.MAX_PORT}"
    )
  from offpolicy_rl.transport import client  # imports gRPC

  wire = client.LearnerClient(
    arguments.run,
    "watch",
    reconnect_seconds=arguments.patience,
    credentials=credentials(),
    proxy=arguments.proxy,
  )
  return wire.watch


def report(arguments, _) -> int:
  """Writes the report of a run, or a page about several."""
  from offpolicy_rl import report as pages

  run_dirs = [pathlib.Path(path) for path in arguments.run_dir]
  if len(run_dirs) > 1:
    print(pages.compare(run_dirs, arguments.to or run_dirs[0].parent / "comparison.html"))
  elif arguments.to:
    raise config_lib.ConfigError(
      "--to: expected with several --run_dir only: one run keeps its own"
    )
  else:
    print(pages.write(run_dirs[0]))
  return 0


def import_(arguments, _) -> int:
  """Checks and takes a published checkpoint."""
  from offpolicy_rl.roles import convert  # imports JAX

  print(convert.import_checkpoint(arguments.source, arguments.to, ignore=arguments.ignore))
  return 0


def export(arguments, _) -> int:
  """Publishes the policy of a run."""
  from offpolicy_rl.roles import convert  # imports JAX

  print(convert.export_checkpoint(arguments.run_dir, arguments.to, dtype=arguments.dtype))
  return 0


def keys(arguments, _) -> int:
  """Lists the keys of a configuration."""
  from offpolicy_rl.config import listing

  print(*(listing.table() if arguments.markdown else listing.lines(arguments.pattern)), sep="\n")
  return 0


def explain(arguments, assignments) -> int:
  """Objectives and the targets that they induce."""
  config = config_lib.load(arguments.config) if arguments.config else config_lib.base()
  if arguments.objective:
    config.objective.name = arguments.objective
  if arguments.beta is not None:
    config.objective.beta = arguments.beta
  config_lib.override(config, [arguments_lib.key_and_text(a) for a in assignments])
  try:
    choices = config_lib.objective_choices(config)
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from None
  from offpolicy_rl.cli import explain as target  # imports JAX

  if not arguments.rewards:
    known, setting = config_lib.presets(config), config_lib.reduction_setting(config)
    if arguments.objective:
      target.card(choices, known, setting)
    else:
      target.presets(known, setting)
    return 0
  try:
    rewards = [float(text) for text in arguments.rewards.split(",")]
    if not all(map(math.isfinite, rewards)):
      raise ValueError
  except ValueError:
    raise config_lib.ConfigError(
      f"--rewards: got {arguments.rewards!r}, expected numbers such as 0,0,1,1"
    ) from None
  own, targets = target.explain(rewards, choices)
  target.show(rewards, own, targets, choices.beta)
  if arguments.png:
    target.draw(rewards, targets, choices.beta, arguments.png)
    print(f"picture: {arguments.png}")
  return 0
