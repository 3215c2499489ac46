"""The tasks by name. Free of TensorFlow and seqio, because every sampler imports it."""

import dataclasses
import functools
import importlib
import json
import pathlib
import re
import types
from collections.abc import Callable
from typing import Any

from offpolicy_rl.tasks import named, registered, sources, splits, verifiers
from offpolicy_rl.tasks.rows import TaskError
from offpolicy_rl.tasks.sources import Problem
from offpolicy_rl.tasks.splits import HELDOUT_SPLIT as HELDOUT_SPLIT
from offpolicy_rl.tasks.splits import TRAIN_SPLIT as TRAIN_SPLIT
from offpolicy_rl.tasks.splits import Selection, Task

MIXTURE, GYM = "mixture", "reasoning_gym"
NO_ENVIRONMENT = "none"  # in place of an environment's name: completions have one turn
# Keys of the section `task` that a member of a mixture may override.
MEMBER_KEYS = (
  *("data_dir", "train_file", "heldout_file", "size", "options", "verifier", "max_bad_rows"),
  *("question_column", "answer_column", "demonstration_column"),
  *("module", "train_split", "heldout_split", "max_listed"),
)


def _once(function: Callable, *args, **kwargs) -> Callable[[], list]:
  return functools.cache(functools.partial(function, *args, **kwargs))


def _sums() -> list[Problem]:
  pairs = ((a, b) for a in range(10) for b in range(10))
  return [Problem(f"{a}+{b}=", json.dumps(str(a + b)), str(a + b)) for a, b in pairs]


TASKS = {
  task.name: task
  for task in (
    Task(
      name="chain_sum",  # a + b with two digits each; the package also draws subtractions
      problems=_once(
        sources.reasoning_gym,
        "chain_sum",
        14_000,
        keep=lambda entry: "+" in entry["question"],
        min_terms=2,
        max_terms=2,
        min_digits=2,
        max_digits=2,
      ),
      verifier=verifiers.NAMED["reasoning_gym"],
      phrases=("State the final answer to the following arithmetic problem: ", " + ", " ="),
      check=sources.check_gym,
      slow=True,
    ),
    Task(
      name="spell_backward",
      problems=_once(
        sources.reasoning_gym, "spell_backward", 10_000, min_word_len=3, max_word_len=5
      ),
      verifier=verifiers.NAMED["reasoning_gym"],
      phrases=("Spell this word backward (example: sun -> nus): ",),
      check=sources.check_gym,
      slow=True,
    ),
    Task(name="sums", problems=_sums, verifier=verifiers.NAMED["exact"]),
  )
}


def _gym_task(settings, label: str) -> Task:
  if not label:
    raise TaskError(f"task.name: got {settings.name!r}, expected reasoning_gym:NAME")
  if label in verifiers.REFUSED:
    raise TaskError(
      f"task.name: got {settings.name!r}, which can't be trained on: {verifiers.REFUSED[label]}"
    )
  options = json_object("task.options", settings.options)

  def problems() -> list[Problem]:
    # Without this order, few easy problems and their repeats leave them all at the beginning, and
    # the first held-out ones would be easier than the rest.
    drawn = sources.reasoning_gym(label, settings.size, **options)
    return sorted(drawn, key=lambda problem: splits.digest(problem.question))

  return Task(
    settings.name,
    _once(problems),
    verifiers.NAMED["reasoning_gym"],
    check=lambda: sources.check_gym_options(label, options),
    slow=True,
  )


def _gsm8k_task(settings, _) -> Task:
  return Task(
    settings.name,
    _once(sources.gsm8k, settings.data_dir, "train"),
    verifiers.NAMED["numeric"],
    heldout=_once(sources.gsm8k, settings.data_dir, "test"),
    check=lambda: sources.check_gsm8k(settings.data_dir),
    slow=not sources.gsm8k_has_files(settings.data_dir),
    max_bad_rows=settings.max_bad_rows,
  )


def _math_task(settings, _) -> Task:
  folder = pathlib.Path(settings.data_dir)
  train, test = (sources.split_file(folder, split) for split in ("train", "test"))
  return Task(
    settings.name,
    _once(sources.math, train),
    verifiers.NAMED["math_verify"],
    heldout=_once(sources.math, test),
    check=lambda: [sources.check_file("task.data_dir", path) for path in (train, test)],
    max_bad_rows=settings.max_bad_rows,
  )


def _jsonl_task(settings, label: str) -> Task:
  if not re.fullmatch(r"[\w.#]*", label, re.ASCII):  # a name in seqio's registry, and of a folder
    raise TaskError(
      f"task.name: got {settings.name!r:.100}, expected only letters, digits, '_', '.' and '#' "
      "after the colon"
    )
  columns, most = sources.columns(settings), settings.max_listed
  files = {"train_file": settings.train_file, "heldout_file": settings.heldout_file}
  return Task(
    settings.name,
    _once(sources.jsonl, settings.train_file, columns, most),
    verifiers.NAMED["exact"],
    heldout=_once(sources.jsonl, settings.heldout_file, columns, most)
    if settings.heldout_file
    else None,
    check=lambda: [
      sources.check_file(f"task.{key}", path)
      for key, path in files.items()
      if path or key == "train_file"
    ],
    max_bad_rows=settings.max_bad_rows,
  )


# Kinds of tasks that come with the environment they are played in -> module with `task`.
_PLAYED = {
  name: f"offpolicy_rl.environments.{name}" for name in ("openenv", "textarena", "verifiers")
}


def _played_task(settings, label: str) -> Task:
  kind = settings.name.partition(":")[0]
  if not label:
    raise TaskError(f"task.name: got {settings.name!r}, expected {kind}:NAME")
  return importlib.import_module(_PLAYED[kind]).task(settings, label)


# Name before the colon -> function of (section `task`, name after the colon) -> Task.
_KINDS = {
  GYM: _gym_task,
  "gsm8k": _gsm8k_task,
  "math": _math_task,
  "jsonl": _jsonl_task,
  "seqio": registered.seqio_task,
  "tfds": registered.tfds_task,
  **dict.fromkeys(_PLAYED, _played_task),
}
_WITH_LABEL = (GYM, "jsonl", "seqio", "tfds", *_PLAYED)
EXPECTED_NAME = (
  f"one of {', '.join(sorted(TASKS))}, gsm8k, math, jsonl, seqio:NAME, tfds:NAME, {GYM}:NAME, "
  f"{', '.join(f'{kind}:NAME' for kind in _PLAYED)}, {MIXTURE}, or your own module:function"
)


def task(function: Callable[[], Task]) -> Callable[[], Task]:
  """Marks a function that returns a task, so that task.name may name it."""
  return named.mark(function, "task")


@functools.cache
def _user_task(name: str) -> Task:
  decorator = "catalog.task (offpolicy_rl.tasks.catalog)"
  try:
    make = named.resolve(name, "task", key="task.name", decorator=decorator)
  except ValueError as error:
    raise TaskError(str(error)) from None
  task = make()
  if not isinstance(task, Task):
    raise TaskError(f"task.name: {name} returned {task!r:.60}, expected a catalog.Task")
  heldout = task.heldout and _once(task.heldout)  # listing problems may be slow
  return dataclasses.replace(task, name=name, problems=_once(task.problems), heldout=heldout)


def select(settings: Any) -> Selection:
  """The tasks of `settings`, the section `task`; TaskError for an unknown task or a bad value."""
  if settings.name != MIXTURE:
    if settings.mixture:
      raise TaskError(
        f"task.mixture: got {settings.mixture!r}, expected '' unless task.name=mixture"
      )
    return Selection(settings.name, (_task(settings),))
  if settings.verifier:
    raise TaskError(
      f"task.verifier: got {settings.verifier!r}, expected '' in a mixture: its members have theirs"
    )
  members = json_object("task.mixture", settings.mixture)
  if len(members) < 2:
    raise TaskError(f"task.mixture: got {len(members)} tasks, expected at least 2")
  rates = [_rate(name, entry) for name, entry in members.items()]
  if min(rates) * 1000 < sum(rates):
    raise TaskError(f"task.mixture: got rates {rates}, expected each at least 1/1000 of their sum")
  tasks = tuple(_member(settings, name, entry) for name, entry in members.items())
  return Selection(MIXTURE, tasks, tuple(rate / sum(rates) for rate in rates), mixed=True)


def _task(settings) -> Task:
  kind, _, label = settings.name.partition(":")
  if settings.name in TASKS:
    task = TASKS[settings.name]
  elif kind in _KINDS and (not label or kind in _WITH_LABEL):
    task = _KINDS[kind](settings, label)
  elif label and kind not in _KINDS:
    task = _user_task(settings.name)
  else:
    raise TaskError(f"task.name: got {settings.name!r:.100}, expected {EXPECTED_NAME}")
  if not settings.verifier:
    return task
  name = verifiers.NAMED.get(settings.verifier, settings.verifier)
  gym = verifiers.NAMED["reasoning_gym"]
  if ":" not in name or (name == gym != task.verifier and kind != "seqio"):
    raise TaskError(
      f"task.verifier: got {settings.verifier!r:.100} for {settings.name}, expected "
      f"{', '.join(verifiers.NAMED)} (the last for its own tasks only) or module:function"
    )
  return dataclasses.replace(task, verifier=name)


def _member(settings, name: str, entry) -> Task:
  """A member of a mixture, with the environment that its entry or the task itself names."""
  keys = {key: getattr(settings, key) for key in MEMBER_KEYS} | {"environment": ""}
  changed = {k: v for k, v in entry.items() if k != "rate"} if isinstance(entry, dict) else {}
  for key, value in changed.items():
    inherited = keys.get(key)
    if type(value) is not type(inherited) and (type(value), type(inherited)) != (int, float):
      expected = type(inherited).__name__ if key in keys else ", ".join(keys)
      raise TaskError(f"task.mixture: {name}: {key}: got {value!r:.60}, expected {expected}")
  its = types.SimpleNamespace(**(keys | changed), name=name, mixture="")
  task = _task(its)
  if its.environment:
    played = "" if its.environment == NO_ENVIRONMENT else its.environment
    task = dataclasses.replace(task, environment=played)
  if task.environment and its.verifier:
    raise TaskError(
      f"task.mixture: {name}: verifier: got {its.verifier!r:.60}, expected '' with an environment, "
      "which judges the turns"
    )
  return task


def _rate(name: str, entry) -> float:
  rate = entry.get("rate") if isinstance(entry, dict) else entry
  if type(rate) not in (int, float) or not 0 < rate < 1e9:
    raise TaskError(f"task.mixture: {name}: got rate {rate!r:.60}, expected a number > 0")
  return float(rate)


def json_object(key: str, text: str) -> dict:
  """The JSON object in a key of the configuration; "" = {}."""
  try:
    value = json.loads(text or "{}")
  except (ValueError, RecursionError) as error:
    raise TaskError(f"{key}: got {text!r:.100}, expected a JSON object: {error!s:.100}") from None
  if not isinstance(value, dict):
    raise TaskError(f"{key}: got {text!r:.100}, expected a JSON object")
  return value


def warnings(selection: Selection) -> list[str]:
  """Notes on tasks that have a catch, one line each."""
  labels = {task.name.partition(":")[2] for task in selection.tasks if task.name.startswith(GYM)}
  warned = sorted(labels & sources.WARNED.keys())
  lines = [f"task.name: {GYM}:{label}: {sources.WARNED[label]}" for label in warned]
  if "gsm_symbolic" in labels and any(task.name == "gsm8k" for task in selection.tasks):
    lines.append(
      "task.mixture: gsm_symbolic's templates are questions of GSM8K's test set, so accuracy on "
      "that set would mean nothing"
    )
  return lines
