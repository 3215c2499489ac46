"""Python as a tool: what the policy sees, and machines without a sandbox."""

import json

import pytest

from offpolicy_rl.environments import environment, processes, python, tools
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.sandbox import outcomes
from offpolicy_rl.tasks import code
from tests.sandbox import here

NAME = "offpolicy_rl.environments.python:Python"


def call(program: str) -> str:
  given = json.dumps({"name": "python", "arguments": {"program": program}})
  return f"<tool_call>{given}</tool_call>"


@here.needs_sandbox
def test_a_problem_is_solved_with_a_program():
  played = environment.resolve(NAME)()
  assert played.reset(json.dumps("5050"), 0) == Turn()
  assert played.step(call("print(sum(range(101)))")) == Turn("5050", role="tool")
  assert played.step(r"It is \boxed{5050}.") == Turn(reward=1.0, done=True)


@here.needs_sandbox
@pytest.mark.parametrize(
  ("program", "shown"),
  [
    ("", "(no output)"),
    ("print('a ')\nexit(2)", "a\nexit status 2"),
    ("print(1)\n1 / 0", "1\nTraceback"),
    ("print(x)", "NameError: name 'x' is not defined"),
    ("import os\nos._exit(3)", "exit status 3"),
    ("import os\nos.fork()", "PermissionError"),
  ],
)
def test_what_a_program_did_is_shown(program, shown):
  assert shown in python.python(program)


@here.needs_sandbox
@pytest.mark.long
def test_long_output_loses_its_middle():
  shown = python.python("print('a' * 5000 + 'b' * 5000)")
  assert shown.startswith("a" * 1000 + "\n... 8,000 characters ...\nb") and len(shown) < 2100
  assert python.python("while True: print('a' * 9999)").endswith("it printed too much")


@here.needs_sandbox
@pytest.mark.long
def test_programs_of_many_episodes_end_within_their_limits():
  made = processes.Processes({NAME: "environment.name"}, processes=2, seconds=8.0, memory_mb=256)
  try:
    played = [made.begin(NAME, json.dumps("1"), seed) for seed in range(4)]
    assert _answers(made, 4) == dict.fromkeys(played, Turn())
    programs = ["while True: pass", "print(1)", "print(2)", "bytearray(400 << 20)"]
    for one, program in zip(played, programs, strict=True):
      made.act(one, call(program))
    found = _answers(made, 4)
    texts = [found[one].text for one in played]
    assert texts[:3] == ["stopped: it took too long", "1", "2"]
    assert texts[3].endswith("MemoryError")
  finally:
    made.close()
  assert not here.processes()


def _answers(made, number: int) -> dict:
  found = {}
  for _ in range(60):
    found |= dict(made.answers(1.0))
    if len(found) == number:
      break
  return found


def test_the_schema_says_what_the_policy_needs():
  described = tools.describe(python.python)["function"]
  assert described["parameters"]["required"] == ["program"]
  assert "no network" in described["description"]


def test_without_a_sandbox_no_episode_begins(monkeypatch):
  def none():
    raise outcomes.SandboxError("there is no bwrap on this machine")

  monkeypatch.setattr(python.Python, "offpolicy_rl_needs", none)
  with pytest.raises(ValueError, match="environment.name: got .*: there is no bwrap"):
    processes.Processes({NAME: "environment.name"}, processes=1, seconds=1.0, memory_mb=0)


def test_limits_outside_of_workers_are_the_usual_ones():
  assert code.limits(1.0) == outcomes.Limits(seconds=10.0, cpu_seconds=1.0, memory_mb=1024)
