"""From the flags of `eval` to a configuration, checked before anything expensive starts.

Imports no JAX.
"""

import pathlib

from offpolicy_rl import config as config_lib
from offpolicy_rl.config import text as config_text

# Flags of eval that are short for a key.
_EVAL_KEYS = {
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
    raise config_lib.ConfigError(f"--k: got {text!r}, expected numbers >= 1 such as 1,4,16")
  return tuple(ks)


def configuration(arguments, assignments: list[tuple[str, str]], ks: tuple[int, ...]):
  """(configuration of the run or card, changed by the flags; problems, None = all), checked.

  Args:
    arguments: of the role eval.
    assignments: (key, text) of every --config.KEY=TEXT; they come after the flags.

  Raises:
    ConfigError: names the flag or key, its value and what was expected.
  """
  if bool(arguments.checkpoint) == bool(arguments.run_dir):
    raise config_lib.ConfigError("--checkpoint, --run_dir: expected one of the two")
  config = (_of_run if arguments.run_dir else _of_checkpoint)(arguments)
  before = config_lib.flatten(config)
  flags = {key: getattr(arguments, flag) for flag, key in _EVAL_KEYS.items()}
  given = [(key, str(value)) for key, value in flags.items() if value is not None] + assignments
  config_lib.override(config, given)
  asked = dict(given)
  if "evaluation.samples" not in asked:
    config.evaluation.samples = ks[-1]
  samples = config.evaluation.samples
  if "sampler.slots" not in asked:
    config.sampler.slots = max(config.sampler.slots, samples)
  config_lib.validate(config, trains=False)
  now = config_lib.flatten(config)
  config_lib.require(
    [
      (
        samples >= ks[-1],
        f"evaluation.samples: got {samples}, expected at least {ks[-1]}, the largest --k",
      ),
      *(
        (
          now[key] == before[key],
          f"{key}: got {now[key]!r}, expected {before[key]!r}, which the weights were made with",
        )
        for key in now
        if _is_of_the_weights(key, config)
      ),
    ]
  )
  # What a run or card says is for its own evaluations, which are many.
  return config, config.evaluation.problems if "evaluation.problems" in asked else None


def _is_of_the_weights(key: str, config) -> bool:
  """A fresh model's vocabulary is its task's."""
  return key.startswith("model.") or (key == "task.name" and not config.model.checkpoint)


def _of_run(arguments):
  """The configuration of a run that has a checkpoint."""
  run_dir = pathlib.Path(arguments.run_dir)
  if arguments.config:
    raise config_lib.ConfigError("--config: the run has its own, change it by --config.KEY=VALUE")
  for path in (run_dir / "config.json", run_dir / "checkpoints"):
    if not path.exists():
      raise config_lib.ConfigError(f"--run_dir: {path} is missing, expected a run's directory")
  return config_lib.from_json((run_dir / "config.json").read_text())


def _of_checkpoint(arguments):
  """The card, or base.py with room for what published models say."""
  folder = pathlib.Path(arguments.checkpoint)
  if not (folder / "config.json").is_file():
    raise config_lib.ConfigError(
      f"--checkpoint: {folder}/config.json is missing, expected a directory made by import"
    )
  config = config_lib.load(arguments.config) if arguments.config else config_text.base()
  if not arguments.config:
    config.task.max_prompt_tokens = config.task.max_completion_tokens = 512
    config.sampler.slots = 32
  config.model.checkpoint = str(folder)
  return config
