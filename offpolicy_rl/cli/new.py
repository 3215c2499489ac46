"""The command `new`: a card, a task and a verifier to start from."""

import importlib.util
import keyword
import pathlib
import re

from offpolicy_rl import config as config_lib

_CARD = '''"""Digits turned round, by a tiny model. All keys: offpolicy-rl keys"""

from offpolicy_rl import config


def get_config():
  """Sets what differs from the defaults."""
  c = config.base()
  c.task.name = "NAME.task:turned"
  c.task.verifier = "NAME.verifier:in_place"
  c.task.max_prompt_tokens = 4
  c.task.max_completion_tokens = 4
  c.warm_start.steps = 150  # imitates demonstrations, at most so many steps ...
  c.warm_start.stop_loss = 0.7  # ... or until it is right sometimes
  c.warm_start.learning_rate = 4e-3
  c.objective.beta = 0.5
  c.learner.steps = 150
  c.learner.learning_rate = 1e-3
  c.learner.prompts_per_step = 16
  c.evaluation.problems = 64
  c.evaluation.every = 50
  return c
'''
_TASK = '''"""The problems. They are the same list, in the same order, every time."""

import json

from offpolicy_rl.tasks import catalog, sources


def _problem(number: int) -> sources.Problem:
  digits = f"{number:03}"
  right = digits[::-1]
  return sources.Problem(
    question=f"{digits}>",
    answer=json.dumps(right),  # what the verifier gets, as JSON
    demonstration=right,  # what the warm start imitates
  )


@catalog.task
def turned() -> catalog.Task:
  """Every number with three digits, to be read from right to left; one in eight is held out."""
  problems = lambda: [_problem(number) for number in range(1000)]
  return catalog.Task("NAME", problems, "NAME.verifier:in_place")
'''
_VERIFIER = '''"""The verifier: a completion's reward. It runs in a process of its own."""

import json

from offpolicy_rl.tasks import verifiers


@verifiers.verifier
def in_place(completion: str, answer: str) -> float:
  """1.0 for the right answer, which is what held-out accuracy counts; else a part of a half.

  Args:
    completion: the text of a finished answer.
    answer: of the problem, as JSON.
  """
  given, right = completion.strip(), json.loads(answer)
  if given == right:
    return 1.0
  hits = sum(a == b for a, b in zip(given, right, strict=False))
  return 0.5 * hits / max(len(given), len(right))
'''


def create(name: str) -> list[pathlib.Path]:
  """Writes NAME/NAME.py, NAME/task.py and NAME/verifier.py below the working directory.

  Raises:
    ConfigError: the name can't be a module's, or is taken.
  """
  expected = "a name for a folder that Python can import, such as my_task"
  if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) or keyword.iskeyword(name):
    raise config_lib.ConfigError(f"NAME: got {name!r:.100}, expected {expected}")
  folder = pathlib.Path(name)
  if folder.exists():
    raise config_lib.ConfigError(f"NAME: {folder} exists, expected a new name")
  if importlib.util.find_spec(name) is not None:
    raise config_lib.ConfigError(f"NAME: Python has a module {name} already; expected {expected}")
  texts = {f"{name}.py": _CARD, "task.py": _TASK, "verifier.py": _VERIFIER}
  folder.mkdir()
  for file, text in texts.items():
    (folder / file).write_text(text.replace("NAME", name), encoding="utf-8")
  return [folder / file for file in texts]
