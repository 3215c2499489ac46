"""Configurations as files, flags and JSON; what their values must be is `config.py`'s affair.

Imports no JAX.
"""

import contextlib
import importlib.util
import inspect
import json
import pathlib
import sys
import traceback

from ml_collections import config_dict

from offpolicy_rl import losses


class ConfigError(ValueError):
  """Names the key, its value and what was expected."""


def flatten(config: config_dict.ConfigDict) -> dict:
  """{"section.key": value}."""
  found = {}
  for key, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      found |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
    else:
      found[key] = value
  return found


def base() -> config_dict.ConfigDict:
  """Every key with its value in configs/base.py, whatever the working directory."""
  package = pathlib.Path(__file__).parent.parent
  # As setup.py installs them, or of the checkout that this file is in.
  for root in (package / "shipped", package.parent):
    if (root / "configs" / "base.py").is_file():
      return load(str(root / "configs" / "base.py"))
  raise ConfigError(f"configs/base.py: neither in {package}/shipped nor beside {package}")


def load(path: str) -> config_dict.ConfigDict:
  """The `get_config()` of an experiment card, or the config.json of a run; else ConfigError."""
  if path.endswith(".json"):
    return _of_json(path)
  # A card imports its siblings as `configs.base`, wherever the repository lies.
  root = str(pathlib.Path(path).resolve().parent.parent)
  if root not in sys.path:
    sys.path.insert(0, root)
  found = call(path, "get_config", "--config")
  if not isinstance(found, config_dict.ConfigDict):
    raise ConfigError(
      f"--config: {path}: get_config returned {found!r:.100}, expected a ConfigDict"
    )
  return found


def _of_json(path: str) -> config_dict.ConfigDict:
  try:
    return from_json(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ConfigError(f"--config: no file {path}") from None
  except (ConfigError, OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"--config: {path}: {error}") from None


def call(path: str, function: str, flag: str):
  """What a function of a Python file returns; ConfigError, naming the flag, when there is none."""
  file = pathlib.Path(path).resolve()
  if not file.is_file():
    inside = f"; did you mean {path}/config.json?" if (file / "config.json").is_file() else ""
    raise ConfigError(f"{flag}: no file {path}{inside}")
  spec = importlib.util.spec_from_file_location(f"_card_{file.stem}", file)
  if spec is None:
    raise ConfigError(f"{flag}: got {path}, expected a Python file such as configs/demo.py")
  module = importlib.util.module_from_spec(spec)
  with _blamed(file, flag):
    spec.loader.exec_module(module)
  found = getattr(module, function, None)
  if not callable(found):
    raise ConfigError(f"{flag}: {path} has no function {function}")
  try:
    inspect.signature(found).bind()
  except TypeError as error:
    raise ConfigError(
      f"{flag}: {path} is for other files to build on: its {function} needs arguments ({error})"
    ) from None
  with _blamed(file, flag):
    return found()


@contextlib.contextmanager
def _blamed(file: pathlib.Path, flag: str):
  """Whatever somebody's file raises becomes a ConfigError with its line there."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    at = f", line {lines[-1]}" if lines else ""
    raise ConfigError(f"{flag}: {file}{at}: {type(error).__name__}: {error}") from error


def override(config: config_dict.ConfigDict, assignments: list[tuple[str, str]]) -> None:
  """Sets keys from command-line text, e.g. ("objective.beta", "0.2"); the type stays the key's.

  Raises:
    ConfigError: unknown key, or text that is no value of its type.
  """
  for key, text in assignments:
    *sections, name = key.split(".")
    node = config
    for section in sections:
      node = node[section] if isinstance(node, config_dict.ConfigDict) and section in node else {}
    if name not in node or isinstance(node[name], config_dict.ConfigDict):
      raise ConfigError(f"--config.{key}: unknown key, expected one of: {_siblings(config, key)}")
    node[name] = _parse(key, text, node.get_type(name))


def _siblings(config: config_dict.ConfigDict, key: str) -> str:
  """The keys of the section that `key` seems to be in."""
  keys = list(flatten(config))
  same = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
  return ", ".join(same or keys)


def _parse(key: str, text: str, kind: type):
  if text.lower() == "none" and key.startswith("objective."):
    return None
  if kind is type(None):  # an unset choice of a configuration that was read from JSON
    kind = {f.name: f.type for f in losses.choices.OVERRIDABLE}[key.split(".")[1]]
  if kind is bool:
    if text.lower() not in ("true", "false"):
      raise ConfigError(f"--config.{key}: got {text!r}, expected true or false")
    return text.lower() == "true"
  try:
    return kind(text)
  except ValueError:
    raise ConfigError(f"--config.{key}: got {text!r}, expected {kind.__name__}") from None


def to_json(config: config_dict.ConfigDict) -> str:
  """The whole configuration as text, keys sorted."""
  return json.dumps(config.to_dict(), sort_keys=True, indent=2)


def from_json(text: str) -> config_dict.ConfigDict:
  """Inverse of `to_json`, locked; what is in it is for `validate` to judge.

  Raises:
    ConfigError: no JSON object.
  """
  try:
    found = json.loads(text)
    if isinstance(found, dict):
      return config_dict.ConfigDict(found).lock()
    problem = f"got {type(found).__name__}"
  except (ValueError, RecursionError) as error:
    problem = str(error)
  raise ConfigError(f"configuration: {problem:.200}, expected a JSON object of sections")
