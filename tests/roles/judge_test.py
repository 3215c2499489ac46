"""Runs whose rewards come from a judge: its keys, its parts in the metrics, its spent budget."""

import json

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.chat_api import server
from offpolicy_rl.environments import guess
from offpolicy_rl.roles import build
from offpolicy_rl.tasks import judge, scoring
from tests import end_to_end_test as system
from tests.chat_api.server_test import Echo
from tests.roles.evaluate_test import published as published
from tests.run_system import processes, train_rows
from tests.tasks.judge_test import GOOD, RUBRIC, said
from tests.tasks.judge_test import serve as serve

GAME = f"{guess.__name__}:GuessTheNumber"


def asks(config, url: str = "http://127.0.0.1:9/v1"):
  config.judge.url, config.judge.model, config.judge.rubric = url, "big", RUBRIC
  return config


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("judge.url", "judge.example", "judge.url: got 'judge.example', expected http"),
    ("judge.model", "", "judge.model: got '', expected the name"),
    ("judge.url", "", "judge.url: got '', expected the address of a server that grades by"),
    ("judge.rubric", "", "judge.rubric: got '', expected what it grades by"),
    ("judge.rubric", "{", "judge.rubric: got '{', expected an object like"),
  ],
)
def test_what_does_not_go_together_is_refused(tiny_config, key, value, message):
  config_lib.validate(asks(tiny_config))
  section, name = key.split(".")
  tiny_config[section][name] = value
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(tiny_config)


def test_a_scorer_is_made_with_a_judge_only_where_there_is_one(tiny_config, monkeypatch):
  policy = build.make_policy(tiny_config, None)
  with build.scoring_of(tiny_config, policy) as score:
    assert isinstance(score.args[0], scoring.Scorer)
  with build.scoring_of(asks(tiny_config), policy) as score:
    assert isinstance(score.args[0], judge.JudgedScorer)
  tiny_config.environment.name = GAME
  with build.scoring_of(tiny_config, policy) as score:
    assert isinstance(score.args[0], judge.JudgedScorer)
  monkeypatch.setenv(judge.KEY, "s3cret")
  tiny_config.judge.url = "http://judge.example"
  with pytest.raises(ValueError, match="expected https"), build.scoring_of(tiny_config, policy):
    pass


@pytest.mark.long
@pytest.mark.parametrize("played", [False, True])
def test_a_run_is_trained_by_a_judge_and_logs_each_part(tiny_config, tmp_path, serve, played):
  """No question is asked twice."""
  stub = serve(said(json.dumps(GOOD)))
  if played:
    tiny_config.task.name = f"{guess.__name__}:guess_the_number"
    tiny_config.environment.name, tiny_config.task.max_prompt_tokens = GAME, 8
  config = system.small(asks(tiny_config, stub.url), lag__mode="fixed", lag__max_lag=1)
  config.learner.steps, config.judge.retries = 3, 0
  config.task.judge_unfinished = True
  system.over_the_wire(config, tmp_path / "run", samplers=1)
  rows = train_rows(tmp_path / "run")
  assert [row["rubric"] for row in rows] == [{"clear": 0.5, "right": 1.0}] * 3
  assert [row["reward"] for row in rows] == [0.875] * 3
  assert all(row["verifier_failures"] == 0 for row in rows)
  contents = [asked["messages"][1]["content"] for _, asked in stub.asked]
  assert len(set(contents)) == len(contents) and "# Question\n" in contents[0]


class Grader(Echo):
  """A policy behind our own server that says the same grade to everything."""

  def chat(self, base, request):
    self.models(base)
    return self._parts(f"So: {json.dumps(GOOD)}")


def test_a_policy_behind_our_own_server_judges(tiny_config, tmp_path):
  with server.serving(Grader()) as url:
    config = system.small(asks(tiny_config, f"{url}/here/v1"), lag__mode="fixed", lag__max_lag=1)
    config.learner.steps, config.judge.retries, config.task.judge_unfinished = 3, 0, True
    system.over_the_wire(config, tmp_path / "run", samplers=1)
  rows = train_rows(tmp_path / "run")
  assert [row["rubric"] for row in rows] == [{"clear": 0.5, "right": 1.0}] * 3
  assert [(row["reward"], row["verifier_failures"]) for row in rows] == [(0.875, 0)] * 3


@pytest.mark.long
def test_a_model_that_serve_serves_judges_and_what_is_no_grade_is_a_counted_failure(
  tiny_config, tmp_path, published, caplog
):
  """A random one says nothing else."""
  with processes() as launch:
    flags = ["--listen=127.0.0.1:0", "--slots=4", "--context=1024", "--model=tiny"]
    judging = launch("serve", f"--checkpoint={published}", *flags)
    line = next(line for line in judging.stdout if "Ctrl-C" in line)
    config = asks(tiny_config, line.split(" at ")[1].split(",")[0])
    config = system.small(config, lag__mode="fixed", lag__max_lag=1, judge__model="tiny")
    config.learner.steps, config.judge.answer_tokens = 2, 6
    config.judge.retries, config.task.judge_unfinished = 0, True
    system.over_the_wire(config, tmp_path / "run", samplers=1)
  rows = train_rows(tmp_path / "run")
  assert [(row["reward"], row["verifier_failures"]) for row in rows] == [(0.0, 32)] * 2
  assert not any("rubric" in row for row in rows)
  said_what = [r.getMessage() for r in caplog.records if "judge failed" in r.getMessage()]
  assert said_what and all("expected an object with numbers from 0 to" in x for x in said_what)


@pytest.mark.long
def test_a_spent_budget_ends_a_local_run_with_the_reason(tmp_path, serve):
  stub = serve(said(json.dumps(GOOD)))
  settings = {"url": stub.url, "model": "big", "rubric": RUBRIC, "max_calls": 5}
  flags = [f"--config.judge.{key}={value}" for key, value in settings.items()]
  flags += ["--config.task.judge_unfinished=True", "--config.warm_start.steps=5"]
  with processes() as launch:
    run = launch("local", "--config=configs/test.py", f"--run_dir={tmp_path}/run", *flags)
    output, _ = run.communicate(timeout=150)
  assert run.returncode == 1
  assert "judge.max_calls: this sampler has spent 5 of 5" in output
  assert "continue with offpolicy-rl local --resume" in output
  assert len(stub.asked) == 5
