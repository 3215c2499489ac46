"""TextArena itself: which games can be played, that they repeat, and a run."""

import json
import os
import subprocess
import sys

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.environments.textarena import Game
from offpolicy_rl.observe import metrics
from offpolicy_rl.tasks import catalog
from tests.run_system import processes, train_rows

# One of each kind of game for one player; their variants differ in size.
GAMES = [
  *("2048-v0", "Bandit-v0", "Blackjack-v0", "Countdown-v0", "Crosswords-v0", "Cryptarithm-v0"),
  *("FifteenPuzzle-v0", "FrozenLake-v0-random", "GuessTheNumber-v0", "LightsOut-v0"),
  *("LogicPuzzle-v0", "Mastermind-v0", "Minesweeper-v0", "PegJump-v0", "RushHour-v0"),
  *("Secretary-v0", "Set-v0", "Slitherlink-v0", "Sokoban-v0", "Sudoku-v0"),
  *("ThreeCardMonte-v0", "TowerOfHanoi-v0", "UltimateTexasHoldem-v0"),
]
MOVES = ("1", "up", "[5]", "left", "[A B]", "down", "2 1")


def play(name: str, seed: int) -> list:
  game = Game()
  seen = [game.open(name, {}, seed)]
  for move in MOVES:
    turn = game.step(move)
    seen.append((turn.text, turn.reward, turn.done))
    if turn.done:
      break
  return seen


def plays() -> str:
  return json.dumps([play(name, 3) for name in GAMES])


def test_every_game_repeats_in_another_process():
  code = f"from {__name__} import plays; print(plays())"
  found = [
    subprocess.run(
      [sys.executable, "-c", code],
      env=os.environ | {"PYTHONHASHSEED": seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.splitlines()[-1]
    for seed in ("1", "2")
  ]
  assert found[0] == found[1]
  games = json.loads(found[0])
  assert all(len(seen) > 1 and seen[0] for seen in games)
  assert sum(len(seen) > 3 for seen in games) >= 4  # some go on after wrong moves


def test_episodes_side_by_side_are_those_alone():
  alone = [[turn for turn in play("2048-v0", seed)[1:]] for seed in (1, 2)]
  games = [Game(), Game()]
  for seed, game in enumerate(games, 1):
    game.open("2048-v0", {}, seed)
  together = [[], []]
  for move in MOVES:
    for game, seen in zip(games, together, strict=True):
      if not (seen and seen[-1][2]):
        turn = game.step(move)
        seen.append((turn.text, turn.reward, turn.done))
  assert together == alone and alone[0] != alone[1]


def test_a_turn_says_only_what_is_new():
  game = Game()
  assert "Guess The Number" in game.open("GuessTheNumber-v0", {"max_number": 9}, 3)
  hints = [game.step(str(number)) for number in (1, 2)]
  assert [hint.text for hint in hints] == ["The target number is higher."] * 2
  ended = next(turn for number in range(3, 10) if (turn := game.step(f"[{number}]")).done)
  assert ended.reward == 1


@pytest.mark.parametrize(
  ("name", "why"),
  [
    ("Chess-v0", "The number of players has to be 2"),
    ("QuantumTicTacToe-v0", "no game for one player"),
    ("TwentyQuestions-v0", "can't be played here: .*API key"),
    ("Klondike-v0", "can't be played here: SyntaxError"),
    ("Nothing-v0", "expected a game of the package"),
  ],
)
def test_other_games_are_refused_before_a_run(name, why):
  config = config_lib.base()
  config.task.name = f"textarena:{name}"
  with pytest.raises(catalog.TaskError, match=f"textarena:{name}'.*{why}"):
    catalog.select(config.task).tasks[0].check()


def test_problems_are_games_with_seeds():
  config = config_lib.base()
  config.task.name, config.task.size = "textarena:GuessTheNumber-v0", 24
  task = catalog.select(config.task).tasks[0]
  train, held = task.split("train"), task.split("heldout")
  assert len(train) + len(held) == 24 and held
  assert {json.loads(p.answer)["seed"] for p in train + held} == set(range(24))
  config.task.name, config.task.size = "textarena:LightsOut-v0", 8
  problems = catalog.select(config.task).tasks[0].problems()
  assert "(Game" not in problems[0].question and len({p.question for p in problems}) == 8


@pytest.mark.timeout(600)
def test_a_run_plays_games(tmp_path):
  settings = {
    "task.name": "textarena:Mastermind-v0",
    "task.size": 40,
    "task.max_prompt_tokens": 512,
    "task.max_completion_tokens": 224,
    "environment.max_turn_tokens": 1,
    "warm_start.steps": 0,
    "learner.steps": 2,
    "learner.prompts_per_step": 2,
    "evaluation.problems": 2,
  }
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  with processes() as launch:
    local = launch(
      "local", "--config=configs/test.py", f"--run_dir={tmp_path / 'run'}", *flags, XLA_FLAGS=""
    )
    output, _ = local.communicate(timeout=500)
  assert local.returncode == 0, output
  rows = train_rows(tmp_path / "run")
  assert len(rows) == 2 and not any(row["verifier_failures"] for row in rows)
  lines = metrics.read_lines(tmp_path / "run" / "completions.jsonl")
  ends = {c["ended"] for line in lines for c in line["completions"]}
  assert ends and ends <= {"done", "turns", "tokens"}
