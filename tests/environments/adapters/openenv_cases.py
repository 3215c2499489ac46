"""Servers of openenv itself: one that the package carries, and ours that is slow, wrong or gone."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.environments.openenv import Session
from offpolicy_rl.environments.processes import Processes
from offpolicy_rl.tasks import catalog, pool
from tests.conftest import ROOT
from tests.environments.adapters.openenv_server import SESSIONS
from tests.environments.processes_test import answers
from tests.run_system import processes, train_rows, wait_for

SESSION = "offpolicy_rl.environments.openenv:Session"


@contextlib.contextmanager
def serving(kind: str, folder):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  module = "tests.environments.adapters.openenv_server"
  server = subprocess.Popen([sys.executable, "-m", module, str(port), kind, str(folder)], cwd=ROOT)

  def is_up() -> bool:
    assert server.poll() is None
    with contextlib.suppress(OSError):
      return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
    return False

  try:
    wait_for(is_up, 120, "the server")
    yield server, f"http://127.0.0.1:{port}"
  finally:
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def guess(tmp_path_factory):
  with serving("guess", tmp_path_factory.mktemp("guess")) as (_, url):
    yield url


def task_of(url: str, size=8, **options):
  config = config_lib.base()
  config.task.name, config.task.size = f"openenv:{url}", size
  config.task.options = json.dumps(options)
  return catalog.select(config.task).tasks[0]


@contextlib.contextmanager
def playing(number: int, task):
  """The first problem is played several times, in one process."""
  made = Processes({SESSION: "environment.name"}, processes=1, seconds=20.0, memory_mb=0)
  with contextlib.closing(made):
    problems = [problem.answer for problem in task.problems()]
    played = [made.begin(SESSION, problems[0], 0) for _ in range(number)]
    assert answers(made, number) == dict.fromkeys(played, Turn())
    yield made, played


def test_the_environment_that_the_package_carries(tmp_path):
  with serving("echo", tmp_path) as (_, url):
    problems = task_of(url, text="echoed_message").problems()
    assert [p.question for p in problems[:2]] == [
      f"Echo Env environment ready!\n(Game {number})" for number in range(2)
    ]
    with contextlib.closing(Session()) as session:
      assert session.reset(problems[0].answer, 5) == Turn()
      assert session.step("hello") == Turn("hello", 0.5)
      assert session.step('{"message": "hi"}') == Turn("hi", 0.2)
      assert session.step('{"message": 3}').text == (
        "error: message: Input should be a valid string"
      )
    with contextlib.closing(Session()) as session:
      session.open({"url": url}, 0)
      assert session.step("a") == Turn('{"echoed_message": "a", "message_length": 1}', 0.1)


def test_seeds_arguments_rewards_and_the_end(guess):
  problems = task_of(guess, size=12, text="hint", reset={"top": 1}).problems()
  assert "from 0 to 1" in problems[0].question and "(Game" in problems[0].question
  for problem in problems:
    right = problem.question.partition("ends with ")[2][0]
    with contextlib.closing(Session()) as session:
      session.reset(problem.answer, 0)
      assert session.step("7") == Turn("lower", 0.25)
      assert session.step(right) == Turn("right", 1.0, True)


def test_an_opening_that_is_another_one_is_said(guess):
  problem = json.loads(task_of(guess).problems()[0].answer)
  with contextlib.closing(Session()) as session:
    again = session.reset(json.dumps(problem | {"opening": "changed"}), 0)
  assert "Guess a number" in again.text


@pytest.mark.parametrize(
  ("action", "reason"),
  [
    ("13", "TimeoutError"),
    ("14", "RuntimeError: the server says: EXECUTION_ERROR: no such number"),
  ],
)
def test_a_slow_or_failing_answer_costs_its_own_episode(guess, action, reason):
  with playing(2, task_of(guess, seconds=1.0, text="hint")) as (made, (bad, good)):
    made.act(bad, action)
    made.act(good, "20")
    found = answers(made, 2)
    assert isinstance(found[bad], pool.Failed) and found[bad].reason.startswith(reason)
    assert found[good] == Turn("lower", 0.25)


def test_a_server_that_goes_away_fails_its_episodes(tmp_path):
  with serving("guess", tmp_path) as (server, url), playing(2, task_of(url)) as (made, played):
    server.send_signal(signal.SIGKILL)
    server.wait()
    for one in played:
      made.act(one, "3")
    found = answers(made, 2)
    assert all("ConnectionClosed" in found[one].reason for one in played)
    gone = json.dumps({"world": {"url": url}, "seed": 0, "opening": ""})
    late = made.begin(SESSION, gone, 0)
    assert "Connection refused" in answers(made, 1)[late].reason


def test_more_sessions_than_the_server_has_are_failures(guess):
  task = task_of(guess)
  with playing(SESSIONS, task) as (made, played):
    more = made.begin(SESSION, task.problems()[0].answer, 0)
    assert "CAPACITY_REACHED" in answers(made, 1)[more].reason
    made.end(played[0])
    again = made.begin(SESSION, task.problems()[0].answer, 0)
    assert answers(made, 1)[again] == Turn()


@pytest.mark.parametrize(
  ("options", "why"),
  [
    ({"text": "hints"}, "task.options: text: got 'hints', expected one of hint"),
    ({"seconds": "1"}, "task.options: got 'seconds': '1', expected reset"),
    ({"seed": 3}, "task.options: got 'seed': 3, expected reset"),
  ],
)
def test_wrong_options_are_refused_before_a_run(guess, options, why):
  with pytest.raises(catalog.TaskError, match=why):
    task_of(guess, **options).check()


def test_servers_that_can_not_be_played_are_refused_before_a_run(tmp_path):
  with pytest.raises(catalog.TaskError, match="127.0.0.1:9: .*Connection refused"):
    task_of("http://127.0.0.1:9").check()
  refused = pytest.raises(catalog.TaskError, match="calls of tools over MCP")
  with serving("tools", tmp_path) as (_, url), refused:
    task_of(url).check()


@pytest.mark.timeout(600)
def test_a_run_outlives_its_server(tmp_path):
  run_dir, steps = tmp_path / "run", 8
  with serving("guess", tmp_path) as (server, url), processes() as launch:
    settings = {
      "task.name": f"openenv:{url}",
      "task.options": '{"text": "hint"}',
      "task.size": 40,
      "task.max_prompt_tokens": 80,
      "task.max_completion_tokens": 40,
      "environment.max_turn_tokens": 1,
      "environment.max_turns": 3,
      "environment.episodes": 16,
      "warm_start.steps": 0,
      "learner.steps": steps,
      "learner.prompts_per_step": 2,
      "lag.max_lag": 1,
      "evaluation.problems": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    run = [f"--run_dir={run_dir}", *flags]
    local = launch("local", "--config=configs/test.py", *run, XLA_FLAGS="")

    def has_begun() -> bool:
      begun = (run_dir / "metrics.jsonl").exists() and len(train_rows(run_dir)) >= 2
      return begun or local.poll() is not None

    wait_for(has_begun, 300, "the first steps")
    server.kill()
    output, _ = local.communicate(timeout=300)
  assert local.returncode == 0, output
  rows = train_rows(run_dir)
  assert len(rows) == steps and not rows[0]["verifier_failures"]
  assert rows[-1]["verifier_failures"] == 2 * 4  # whole groups fail, none is lost
  assert re.search(r"tickets: (\d+) added, .* \1 finished, \1 taken", output), output
