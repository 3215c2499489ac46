"""Reads configurations from cards, flags and JSON; `check.py` checks their values. No JAX."""

import contextlib
import difflib
import importlib.util
import inspect
import json
import pathlib
import sys
import traceback
from collections.abc import Generator, Sequence
from typing import Any

from ml_collections import config_dict

from offpolicy_rl.config import keys

_NAME = "objective.name"


class ConfigError(ValueError):
  """A wrong configuration or flag; names the key, its value and what was expected."""


def flatten(config: config_dict.ConfigDict) -> dict:
  """Flattens a configuration to {"section.key": value}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
    else:
      flat[key] = value
  return flat


def base() -> config_dict.ConfigDict:
  """The configuration of configs/base.py."""
  return keys.locked_config(keys.groups())


def load(path: str) -> config_dict.ConfigDict:
  """Loads the `get_config()` of a card, or the config.json of a run; else raises ConfigError.

  Keys that came since that run have their default.
  """
  if path.endswith(".json"):
    return with_defaults(read(path))
  # Cards import their siblings as `configs.NAME`.
  root = str(pathlib.Path(path).resolve().parent.parent)
  if root not in sys.path:
    sys.path.insert(0, root)
  config = call(path, "get_config", "--config")
  if not isinstance(config, config_dict.ConfigDict):
    raise ConfigError(
      f"--config: {path}: get_config returned {config!r:.100}, expected a ConfigDict"
    )
  return config


def read(path: str) -> config_dict.ConfigDict:
  """Reads the config.json of a run as it is; else raises ConfigError."""
  try:
    return from_json(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ConfigError(f"--config: no file {path}") from None
  except (ConfigError, OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"--config: {path}: {error}") from None


def with_defaults(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """The configuration of a run of an earlier release: keys that came since have their default.

  One with keys that there are not is returned as it is: `check.check_keys` says which.
  """
  saved = flatten(config)
  return _known(saved) if saved.keys() <= flatten(base()).keys() else config


def _known(saved: dict) -> config_dict.ConfigDict:
  """The configuration of these keys, as far as there are such; others have their default."""
  config = base()
  known = flatten(config)
  with config.ignore_type():
    config.update_from_flattened_dict({key: saved[key] for key in saved if key in known})
  return config


def of_run(run_dir: pathlib.Path) -> config_dict.ConfigDict:
  """The configuration of a run, perhaps of an earlier release.

  Keys that came since have their default, those that went are left out. ConfigError for no JSON.
  """
  return _known(flatten(from_json((run_dir / "config.json").read_text(encoding="utf-8"))))


def example_card() -> str:
  """Says which card to give: one that is here, or how to make one."""
  here = next((c for c in ("configs/test.py", "configs/demo.py") if pathlib.Path(c).is_file()), "")
  such = f", such as --config={here}" if here else ""
  return f"--config=FILE{such}; `offpolicy-rl new my_task` writes one"


def example_run() -> str:
  """The newest directory below runs/ that has a run, or the form of its name."""
  configs = pathlib.Path("runs").glob("*/config.json")
  newest = max(configs, key=lambda path: path.stat().st_mtime, default=None)
  return str(newest.parent) if newest else "runs/NAME-TIME"


def call(path: str, function: str, flag: str) -> Any:
  """Calls a function of a Python file.

  Raises:
    ConfigError: there is no such function, or it fails; names flag, file and line.
  """
  file = pathlib.Path(path).resolve()
  if not file.is_file():
    places = (f"{path}/config.json", f"{path}.py", f"configs/{path}", f"configs/{path}.py")
    meant = next((place for place in places if pathlib.Path(place).is_file()), "")
    advice = ""
    if meant:
      advice = f"; did you mean {flag}={meant}?"
    elif flag == "--config":
      advice = f"; expected {example_card()}"
    raise ConfigError(f"{flag}: no file {path}{advice}")
  spec = importlib.util.spec_from_file_location(f"_card_{file.stem}", file)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{flag}: got {path}, expected a Python file such as configs/demo.py")
  module = importlib.util.module_from_spec(spec)
  with _errors_name_the_line(file, flag):
    spec.loader.exec_module(module)
  called = getattr(module, function, None)
  if not callable(called):
    example = "; `offpolicy-rl new my_task` writes an example" if flag == "--config" else ""
    raise ConfigError(f"{flag}: {path} has no function {function}{example}")
  try:
    inspect.signature(called).bind()
  except TypeError as error:
    raise ConfigError(
      f"{flag}: {path} is only a base for other files: its {function} needs arguments ({error}); "
      "give a card that calls it"
    ) from None
  with _errors_name_the_line(file, flag):
    return called()


@contextlib.contextmanager
def _errors_name_the_line(file: pathlib.Path, flag: str) -> Generator[None]:
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    at = f", line {lines[-1]}" if lines else ""
    raise ConfigError(f"{flag}: {file}{at}: {type(error).__name__}: {error}") from error


def override(
  config: config_dict.ConfigDict, assignments: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  """Sets keys from command-line text, e.g. ("objective.beta", "0.2").

  Another `objective.name` comes with its own settings: what the card has set for its objective
  goes back to the default. Returns these keys, with the values that they had.

  Raises:
    ConfigError: unknown key, or text that is no value of its type.
  """
  before = flatten(config)
  present = [key for key in before if key in keys.all_keys()]
  given, reset = dict(assignments), {}
  if _NAME in present and given.get(_NAME, before[_NAME]) != before[_NAME]:
    defaults = {k: keys.all_keys()[k].default for k in present if k.startswith("objective.")}
    reset = {k: before[k] for k in defaults if k not in given and before[k] != defaults[k]}
    with config.ignore_type():
      config.update_from_flattened_dict({key: defaults[key] for key in reset})
  for key, text in assignments:
    if key not in present:
      raise ConfigError(f"--config.{key}: unknown key, expected {_expected(key, present)}")
    with config.ignore_type():  # config.json may have another type
      config.update_from_flattened_dict({key: _parse(key, text)})
  return reset


def _expected(key: str, present: list[str]) -> str:
  """The keys of the same section, or of the keys of all sections the most similar ones."""
  section = key.rpartition(".")[0]
  same_section = [k for k in present if k.rpartition(".")[0] == section]
  if same_section:
    return "one of: " + ", ".join(same_section) + _meant(key, present)
  similar = difflib.get_close_matches(key, present, n=3) or [
    k for k in present if k.rpartition(".")[2] == key.rpartition(".")[2]
  ]
  listing = "`offpolicy-rl keys` lists all"
  return f"for example {', '.join(similar)}; {listing}" if similar else f"a known one; {listing}"


def _meant(key: str, present: list[str]) -> str:
  """A question about the key of the same name in another section, or the most similar one."""
  meant = [k for k in present if k.rpartition(".")[2] == key.rpartition(".")[2]]
  meant = meant or difflib.get_close_matches(key, present, n=1)
  flags = " or ".join(f"--config.{k}" for k in meant)
  return f"; did you mean {flags}?" if meant else ""


def _parse(key: str, text: str) -> Any:
  known = keys.all_keys()[key]
  kind, is_word = known.kind, known.kind is str and known.is_good(text)  # objective.weight=none
  if known.default is None and text.lower() == "none" and not is_word:
    return None
  if kind is bool:
    if text.lower() not in ("true", "false"):
      raise ConfigError(f"--config.{key}: got {text!r}, expected true or false")
    return text.lower() == "true"
  try:
    return kind(text)
  except ValueError:
    raise ConfigError(f"--config.{key}: got {text!r}, expected {kind.__name__}") from None


def to_json(config: config_dict.ConfigDict) -> str:
  """Formats the configuration, with sorted keys."""
  return json.dumps(config.to_dict(), sort_keys=True, indent=2)


def from_json(text: str) -> config_dict.ConfigDict:
  """Inverse of `to_json`; does not check values.

  Raises:
    ConfigError: it is no JSON object.
  """
  try:
    nested = json.loads(text)
    if isinstance(nested, dict):
      return config_dict.ConfigDict(nested).lock()
    problem = f"got {type(nested).__name__}"
  except (ValueError, RecursionError, AttributeError) as error:  # the last: a key __class__
    problem = str(error)
  raise ConfigError(f"configuration: {problem:.200}, expected a JSON object of sections")
