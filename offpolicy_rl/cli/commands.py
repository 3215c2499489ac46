"""The commands that neither train nor sample: from flags and assignments to an exit code."""

import argparse
import json
import math
import os
import pathlib
import sys
import time

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import credentials
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.system import output, signals

Assignments = list[tuple[str, str]]  # key, text of its value


def sweep(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Runs a sweep; 1 if some runs are not finished."""
  from offpolicy_rl.sweep import command

  return command.run(flags, assignments)


def eval_(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Measures greedy accuracy, pass@k and majority votes of a checkpoint or a run."""
  from offpolicy_rl.config import evaluation

  ks = evaluation.numbers(flags.k)
  config, problems = evaluation.configuration(flags, assignments, ks)
  config_lib.check_data(config)
  source = pathlib.Path(flags.run_dir or flags.checkpoint).resolve()
  if flags.out and pathlib.Path(flags.out).exists():
    raise config_lib.ConfigError(f"--out: {flags.out} exists, expected a new directory")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  from offpolicy_rl.roles import evaluate, run_directory  # imports JAX

  name = f"{source.name}-{config.task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
  with run_directory.given_or_new(flags.out, "evals", name) as out:
    evaluate.run(
      config,
      ks=ks,
      split=flags.split,
      problems=problems,
      out=out,
      run_dir=source if flags.run_dir else None,
    )
  return 0


def serve(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Serves a checkpoint or a run to chat clients until it is interrupted."""
  from offpolicy_rl.config import evaluation

  config = evaluation.for_chats(flags, assignments)
  key = credentials.for_chats(flags)
  source = pathlib.Path(flags.run_dir or flags.checkpoint).resolve()
  from offpolicy_rl.roles import serve  # imports JAX

  serve.run(
    config,
    run_dir=source if flags.run_dir else None,
    listen=flags.listen,
    name=flags.model or source.name,
    slots=flags.slots,
    context=flags.context,
    key=key,
    stop=signals.stop_event(),
  )
  return 0


def new(flags: argparse.Namespace, _: Assignments) -> int:
  """Writes a card, a task and a verifier to start from."""
  from offpolicy_rl.cli import new as starter

  card, task, verifier = starter.create(flags.name)
  print(
    f"{card}  the card: what differs from the defaults\n"
    f"{task}  the problems\n"
    f"{verifier}  the reward of a completion\n\n"
    "They run as they are. Type next:\n"
    f"  offpolicy-rl check --config={card}\n"
    f"  offpolicy-rl local --config={card}"
  )
  return 0


def check(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Reads all prompts of a card and reports problems with them."""
  config = _card(flags, assignments)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  from offpolicy_rl.roles import check  # imports JAX

  check.run(config)
  return 0


def _card(flags, assignments: Assignments):
  config = config_lib.load(flags.config)
  config_lib.override(config, assignments)
  config_lib.validate(config)
  return config


def plan(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Compiles a card for a topology; 3 if it does not fit."""
  from offpolicy_rl.planning import topology

  topology.kind(flags.topology)
  config = _card(flags, assignments)
  if flags.json:
    flags.json.parent.mkdir(parents=True, exist_ok=True)
  architecture, teacher = _architecture(flags, config), _teacher(config)
  topology.prepare_environment()
  from offpolicy_rl.planning import plan as planner  # imports JAX

  result = planner.run(
    config,
    flags.topology,
    architecture=architecture,
    cache=pathlib.Path(flags.cache),
    teacher=teacher,
  )
  planner.show(result)
  if flags.json:
    flags.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  return 0 if all(program["fits"] for program in result["programs"]) else 3


def _architecture(flags, config) -> dict:
  """config.json of the card's published model, from its checkpoint or known by its name."""
  if not config.model.checkpoint:
    raise config_lib.ConfigError(
      "model.checkpoint: got '', expected a published model to plan for, as "
      "configs/gsm8k_qwen3_8b.py has"
    )
  return _architecture_at("--architecture", flags.architecture or config.model.checkpoint)


def _teacher(config) -> dict | None:
  where = pathlib.Path(config.teacher.checkpoint)
  if not config.teacher.checkpoint:
    return None
  of_run = where / "model"  # of a run that began with a published model
  return _architecture_at("teacher.checkpoint", str(of_run if of_run.is_dir() else where))


def _architecture_at(key: str, where: str) -> dict:
  from offpolicy_rl.planning import architectures

  path = pathlib.Path(where)
  file = path / "config.json" if path.is_dir() else path
  if file.is_file():
    return json.loads(file.read_text(encoding="utf-8"))
  if path.name in architectures.KNOWN:
    return architectures.KNOWN[path.name]
  raise config_lib.ConfigError(
    f"{key}: no file {file}, expected config.json of the model or one of "
    f"{', '.join(architectures.KNOWN)}"
  )


def watch(flags: argparse.Namespace, _: Assignments) -> int:
  """Shows a live run."""
  from offpolicy_rl.observe import watch as screen

  run_dir = pathlib.Path(flags.run)
  if (run_dir / "config.json").is_file():
    source = screen.directory(run_dir)
  elif flags_lib.is_peer(flags.run) and not run_dir.is_dir():
    source = credentials.learner_client(flags, flags.run, "watch").watch
  else:
    raise config_lib.ConfigError(
      f"RUN: got {flags.run!r}, expected a directory with the config.json of a run, or the "
      f"HOST:PORT of a learner, the port from 1 to {flags_lib.MAX_PORT}"
    )
  console = output.console(soft_wrap=not sys.stdout.isatty())
  screen.run(source, console, once=flags.once)
  return 0


def report(flags: argparse.Namespace, _: Assignments) -> int:
  """Writes the page of a run, or one that compares several."""
  from offpolicy_rl import report as pages

  run_dirs = [pathlib.Path(path) for path in flags.run_dir]
  if len(run_dirs) > 1:
    print(pages.compare(run_dirs, flags.to or run_dirs[0].parent / "comparison.html"))
  elif flags.to:
    raise config_lib.ConfigError(
      "--to: expected only with several --run_dir; the page of one run is in its directory"
    )
  else:
    print(pages.write(run_dirs[0]))
  return 0


def import_(flags: argparse.Namespace, _: Assignments) -> int:
  """Checks a published checkpoint, and copies or converts it."""
  from offpolicy_rl.roles import convert  # imports JAX

  print(convert.import_checkpoint(flags.source, flags.to, ignore=flags.ignore))
  return 0


def export(flags: argparse.Namespace, _: Assignments) -> int:
  """Writes the policy of a run as a published checkpoint."""
  from offpolicy_rl.roles import convert  # imports JAX

  print(convert.export_checkpoint(flags.run_dir, flags.to, dtype=flags.dtype))
  return 0


def keys(flags: argparse.Namespace, _: Assignments) -> int:
  """Lists the keys of a configuration."""
  from offpolicy_rl.config import listing

  listed = listing.table if flags.markdown else listing.lines
  print(*listed(flags.pattern), sep="\n")
  return 0


def explain(flags: argparse.Namespace, assignments: Assignments) -> int:
  """Prints objectives, or the target that one induces."""
  config = config_lib.load(flags.config) if flags.config else config_lib.base()
  if flags.objective:
    config.objective.name = flags.objective
  if flags.beta is not None:
    config.objective.beta = flags.beta
  config_lib.override(config, assignments)
  try:
    choices = config_lib.objective_choices(config)
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from None
  from offpolicy_rl.cli import explain as target  # imports JAX

  if not flags.rewards:
    known, setting = config_lib.presets(config), config_lib.reduction_setting(config)
    if flags.objective:
      target.card(choices, known, setting)
    else:
      target.presets(known, setting)
    return 0
  try:
    rewards = [float(text) for text in flags.rewards.split(",")]
    if not all(map(math.isfinite, rewards)):
      raise ValueError
  except ValueError:
    raise config_lib.ConfigError(
      f"--rewards: got {flags.rewards!r}, expected numbers such as 0,0,1,1"
    ) from None
  targets = target.explain(rewards, choices)
  target.show(rewards, targets, choices.beta)
  if flags.png:
    target.draw(rewards, targets, choices.beta, flags.png)
    print(f"picture: {flags.png}")
  return 0
