"""Makes a checked configuration from the flags of `eval` and `serve`. Imports no JAX."""

import argparse
import pathlib

from ml_collections import config_dict

from offpolicy_rl.config import check
from offpolicy_rl.config import text as config_text
from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.tasks import catalog

# Flags of eval that set a key.
_FLAGS = {
  "task": "task.name",
  "temperature": "sampler.temperature",
  "max_prompt_tokens": "task.max_prompt_tokens",
  "max_completion_tokens": "task.max_completion_tokens",
  "samples": "evaluation.samples",
  "problems": "evaluation.problems",
  "slots": "sampler.slots",
  "seed": "seed",
}


def numbers(text: str) -> tuple[int, ...]:
  """ "1,4,16" -> (1, 4, 16); ConfigError for anything else."""
  ks = sorted({int(part) if part.strip().isdecimal() else 0 for part in text.split(",")})
  if ks[0] < 1:
    raise ConfigError(f"--k: got {text!r}, expected numbers >= 1 such as 1,4,16")
  return tuple(ks)


def configuration(
  arguments: argparse.Namespace, assignments: list[tuple[str, str]], ks: tuple[int, ...]
) -> tuple[config_dict.ConfigDict, int | None]:
  """The checked configuration of a run or card with the flags applied, and the number of problems.

  None problems = all.

  Args:
    arguments: the parsed flags of `eval`.
    assignments: (key, text) of every --config.KEY=TEXT, applied after the flags.

  Raises:
    ConfigError: names the flag or key, its value and what was expected.
  """
  config = _of_weights(arguments)
  before = config_text.flatten(config)
  flags = {key: getattr(arguments, flag) for flag, key in _FLAGS.items()}
  given = [(key, str(value)) for key, value in flags.items() if value is not None] + assignments
  config_text.override(config, given)
  set_keys = {key for key, _ in given}
  if "evaluation.samples" not in set_keys:
    config.evaluation.samples = ks[-1]
  samples = config.evaluation.samples
  if "sampler.slots" not in set_keys:
    config.sampler.slots = max(config.sampler.slots, samples)
  check.validate(config, trains=False)
  config.sampler.top_logprobs = 0  # only training uses them
  if samples < ks[-1]:
    raise ConfigError(
      f"evaluation.samples: got {samples}, expected at least {ks[-1]}, the largest --k"
    )
  _check_weights_fit(before, config)
  # The number of problems in a run or card is meant for evaluations during training.
  return config, config.evaluation.problems if "evaluation.problems" in set_keys else None


def for_chats(
  arguments: argparse.Namespace, assignments: list[tuple[str, str]]
) -> config_dict.ConfigDict:
  """The checked configuration of a run or card for `serve`; arguments and errors as above."""
  config = _of_weights(arguments)
  before = config_text.flatten(config)
  config_text.override(config, assignments)
  check.validate(config, trains=False)
  _check_weights_fit(before, config)
  config.environment.name = catalog.NO_ENVIRONMENT  # clients say what there is besides the model
  return config


def _of_weights(arguments: argparse.Namespace) -> config_dict.ConfigDict:
  """The configuration that belongs to the weights which the flags name."""
  if bool(arguments.checkpoint) == bool(arguments.run_dir):
    raise ConfigError(
      "--checkpoint, --run_dir: expected one of the two: "
      f"--run_dir={config_text.example_run()}, or --checkpoint=DIR, which "
      "`offpolicy-rl import --from=PUBLISHED --to=DIR` makes"
    )
  return (_from_run if arguments.run_dir else _from_checkpoint)(arguments)


def _check_weights_fit(before: dict, config: config_dict.ConfigDict) -> None:
  """Raises ConfigError for changes that do not fit the weights."""
  for key, value in config_text.flatten(config).items():
    # A fresh model has its task's vocabulary.
    fixed = key.startswith("model.") or (key == "task.name" and not config.model.checkpoint)
    if fixed and value != before[key]:
      raise ConfigError(
        f"{key}: got {value!r}, expected {before[key]!r}, which the weights were made with"
      )


def _from_run(arguments: argparse.Namespace) -> config_dict.ConfigDict:
  run_dir = pathlib.Path(arguments.run_dir)
  if arguments.config:
    raise ConfigError("--config: the run has its own, change it by --config.KEY=VALUE")
  for path in (run_dir / "config.json", run_dir / "checkpoints"):
    if not path.exists():
      example = config_text.example_run()
      raise ConfigError(
        f"--run_dir: {path} is missing, expected a run's directory, such as {example}"
      )
  return config_text.of_run(run_dir)


def _from_checkpoint(arguments: argparse.Namespace) -> config_dict.ConfigDict:
  """The card, or base.py with the lengths and slots that published models need."""
  folder = pathlib.Path(arguments.checkpoint)
  if not (folder / "config.json").is_file():
    raise ConfigError(
      f"--checkpoint: {folder}/config.json is missing; `offpolicy-rl import --from=PUBLISHED "
      f"--to={folder}` makes it (for a run: --run_dir={config_text.example_run()})"
    )
  config = config_text.load(arguments.config) if arguments.config else config_text.base()
  if not arguments.config:
    config.task.max_prompt_tokens = config.task.max_completion_tokens = 512
    config.sampler.slots = 32
  config.model.checkpoint = str(folder)
  return config
