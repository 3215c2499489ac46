"""verifiers itself: a taskset that the package carries, one of ours, and what is refused."""

import contextlib
import json
import os
import sys

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.environments.processes import Processes
from offpolicy_rl.environments.verifiers import Rollout
from offpolicy_rl.observe import metrics
from offpolicy_rl.tasks import catalog
from tests.environments.processes_test import answers
from tests.run_system import processes, train_rows

OURS = "tests_reversing"


@pytest.fixture(autouse=True)
def found(monkeypatch, tmp_path):
  """Tasksets are found by name among top-level modules; NLTK finds its words in a folder."""
  code = "from tests.environments.adapters import reversing\nglobals().update(vars(reversing))\n"
  for name in reversing_names():
    (tmp_path / f"{name}.py").write_text(f"{code}__all__ = ['{reversing_names()[name]}']\n")
  path = f"{tmp_path}:{os.environ['PYTHONPATH']}"
  monkeypatch.setenv("PYTHONPATH", path)
  monkeypatch.syspath_prepend(str(tmp_path))
  words = tmp_path / "nltk" / "corpora" / "words"
  words.mkdir(parents=True)
  for file in ("en", "en-basic"):
    (words / file).write_text("apple\ngrape\nlemon\nmango\npeach\n")
  monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
  yield
  for name in reversing_names():
    sys.modules.pop(name, None)


def reversing_names() -> dict[str, str]:
  return {OURS: "ReversingTaskset", "with_tools": "WithTools", "with_runtime": "WithRuntime"}


def task_of(name: str, size=8, **options):
  config = config_lib.base()
  config.task.name, config.task.size = f"verifiers:{name}", size
  config.task.options = json.dumps(options)
  return catalog.select(config.task).tasks[0]


def test_rewards_have_their_weights():
  problems = task_of(OURS).problems()
  assert [p.question for p in problems] == ["Reverse sun.", "Reverse moon.", "Reverse star."]
  expected = {" nus ": 1.5, "sun": 0.5, "n": 0.0}
  for answer, reward in expected.items():
    with contextlib.closing(Rollout()) as rollout:
      assert rollout.reset(problems[0].answer, 3) == Turn()
      assert rollout.step(answer) == Turn(reward=reward, done=True)


def test_options_are_the_tasksets_own():
  assert [p.question for p in task_of(OURS, words=["a", "b"]).problems()] == [
    "Reverse a.",
    "Reverse b.",
  ]
  with pytest.raises(catalog.TaskError, match="verifiers:tests_reversing: ValidationError.*wrods"):
    task_of(OURS, wrods=["a"]).check()


def test_a_game_of_the_package_is_played_turn_by_turn():
  task = task_of("textarena", size=3, game="Hangman-v0")
  problems = task.problems()
  assert problems[0].messages[0]["role"] == "system" and "Hangman" in problems[0].question
  made = Processes({task.environment: "environment.name"}, processes=1, seconds=60.0, memory_mb=0)
  with contextlib.closing(made):
    played = made.begin(task.environment, problems[0].answer, 0)
    assert answers(made, 1)[played] == Turn()
    turns = []
    for letter in "aeplgrmnochz":
      made.act(played, f"[{letter}]")
      turns.append(answers(made, 1)[played])
      if not isinstance(turns[-1], Turn) or turns[-1].done:
        break
  assert len(turns) > 2 and all(turn.text for turn in turns[:-1])
  assert turns[-1].done and 0 < turns[-1].reward <= 1


@pytest.mark.parametrize(
  ("name", "why"),
  [
    ("with_tools", "it needs tool servers"),
    ("with_runtime", "it needs a runtime"),
    ("nowhere", "ModuleNotFoundError: taskset 'nowhere' not found"),
  ],
)
def test_what_a_policy_alone_can_not_play_is_refused_by_name(name, why):
  with pytest.raises(catalog.TaskError, match=f"task.name: verifiers:{name}: .*{why}"):
    task_of(name).check()


@pytest.mark.timeout(600)
def test_a_run_is_rewarded_by_a_taskset(tmp_path):
  settings = {
    "task.name": f"verifiers:{OURS}",
    "task.options": json.dumps({"words": [f"{a}{b}" for a in "abcdefg" for b in "xyz"]}),
    "task.max_prompt_tokens": 16,
    "task.max_completion_tokens": 4,
    "environment.processes": 1,
    "environment.seconds": 60,
    "warm_start.steps": 0,
    "learner.steps": 3,
    "evaluation.problems": 2,
  }
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  with processes() as launch:
    run = [f"--run_dir={tmp_path / 'run'}", *flags]
    local = launch("local", "--config=configs/test.py", *run, XLA_FLAGS="")
    output, _ = local.communicate(timeout=500)
  assert local.returncode == 0, output
  rows = train_rows(tmp_path / "run")
  assert len(rows) == 3 and not any(row["verifier_failures"] for row in rows)
  lines = metrics.read_lines(tmp_path / "run" / "completions.jsonl")
  assert {c["ended"] for line in lines for c in line["completions"]} <= {"done", "tokens"}
