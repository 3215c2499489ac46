"""Environments in processes: what misbehaves costs its own episode only."""

import contextlib
import time

import pytest

from offpolicy_rl.environments import environment, processes
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import pool

GAMES = "tests.environments.games"
BAD = f"{GAMES}:Misbehaves"


def keys(*names: str) -> dict[str, str]:
  return {f"{GAMES}:{name}": "environment.name" for name in names}


@contextlib.contextmanager
def playing(*names: str, number=1, seconds=20.0, memory_mb=0):
  made = processes.Processes(keys(*names), processes=number, seconds=seconds, memory_mb=memory_mb)
  with contextlib.closing(made):
    yield made


def answers(made, number: int) -> dict:
  found = {}
  end = time.monotonic() + 60
  while len(found) < number and time.monotonic() < end:
    found |= dict(made.answers(0.5))
  assert len(found) == number
  return found


def test_episodes_are_played_side_by_side():
  with playing("Adds", number=2) as made:
    played = [made.begin(f"{GAMES}:Adds", "9", seed) for seed in range(5)]
    assert answers(made, 5) == {p: Turn(str(seed)) for seed, p in enumerate(played)}
    for p in played:
      made.act(p, "4")
    found = answers(made, 5)
    assert [found[p] for p in played] == [Turn(str(seed + 4), 0.5, seed == 5) for seed in range(5)]
    assert len({p.home for p in played}) == 2


def test_a_process_plays_every_environment():
  with playing("Adds", "Misbehaves") as made:
    adds, other = made.begin(f"{GAMES}:Adds", "9", 4), made.begin(BAD, '"a"', 0)
    assert answers(made, 2) == {adds: Turn("4"), other: Turn("a1")} and adds.home is other.home
    made.act(other, "die")
    answers(made, 1)
    made.act(adds, "5")  # is played again, as what it was
    assert answers(made, 1) == {adds: Turn("9", 0.5, True)}


@pytest.mark.parametrize(
  ("action", "reason"),
  [
    ("hang", "not done after 1 s"),
    ("die", "its process died, exit code 3"),
    ("memory", "MemoryError"),
    ("timeout", "TimeoutError: no server"),
    ("raise", "RuntimeError: no such move"),
    ("10 MB", "ValueError: text: got 10,000,000 characters, expected at most 1,000,000"),
    ("nan", "ValueError: reward: got nan, expected a number from"),
    ("text", "TypeError: the environment returned 'not a turn', expected an environment.Turn"),
  ],
)
def test_one_that_misbehaves_fails_alone(action, reason):
  with playing("Misbehaves", seconds=1.0, memory_mb=256) as made:
    bad, good = made.begin(BAD, '"a"', 0), made.begin(BAD, '"b"', 0)
    assert answers(made, 2) == {bad: Turn("a1"), good: Turn("b1")}
    for said in ("c", "d"):
      made.act(good, said)
      answers(made, 1)
    made.act(bad, action)
    [failed] = answers(made, 1).values()
    assert isinstance(failed, pool.Failed) and failed.reason.startswith(reason)
    assert failed.late == (action in ("hang", "timeout"))
    made.end(bad)
    made.act(good, "e")  # played again where its process was replaced
    assert answers(made, 1) == {good: Turn("e4")}
    last = made.begin(BAD, '"f"', 0)
    assert answers(made, 1) == {last: Turn("f1")}


@pytest.mark.parametrize("action", ["hang", "die", "raise"])
def test_one_that_misbehaves_costs_nothing_of_what_was_sent_with_it(action):
  with playing("Misbehaves", seconds=1.0) as made:
    played = [made.begin(BAD, f'"{name}"', 0) for name in "abcde"]
    answers(made, 5)
    made.act(played[0], "slow")  # meanwhile the others wait for it
    for p, said in zip(played[1:], ("x", action, "y", "z"), strict=True):
      made.act(p, said)
    made.end(played[4])  # with its answer still to come
    found = answers(made, 5)
    assert isinstance(found.pop(played[2]), pool.Failed)
    assert found == {
      p: Turn(f"{said}2")
      for p, said in zip(played, ("slow", "x", "", "y", "z"), strict=True)
      if said
    }


def test_each_answer_comes_when_it_is_there():
  with playing("Misbehaves") as made:
    first, second = made.begin(BAD, '"a"', 0), made.begin(BAD, '"b"', 0)
    answers(made, 2)
    made.act(first, "slow")
    made.act(second, "slow")
    assert list(answers(made, 1)) == [first]
    assert list(answers(made, 1)) == [second]


def test_one_that_misbehaves_at_the_reset_fails_alone():
  with playing("Misbehaves", seconds=1.0) as made:
    good, bad = made.begin(BAD, '"a"', 0), made.begin(BAD, '"die"', 0)
    found = answers(made, 2)
    assert found[good] == Turn("a1") and isinstance(found[bad], pool.Failed)


def test_one_that_answers_otherwise_when_played_again_has_failed():
  with playing("Misbehaves") as made:
    first, second = made.begin(BAD, '"count"', 0), made.begin(BAD, '"count"', 0)
    assert answers(made, 2) == {first: Turn("1"), second: Turn("2")}
    made.act(first, "die")
    answers(made, 1)
    made.act(second, "done")
    [failed] = answers(made, 1).values()
    assert "answered otherwise when played again" in failed.reason


def test_a_wrong_name_is_refused_at_once():
  with pytest.raises(ValueError, match="environment.name: got .*NotMarked.*, expected a class"):
    processes.Processes(keys("NotMarked"), processes=1, seconds=1.0, memory_mb=0)
  with pytest.raises(ValueError, match="WithoutStep', expected a class with a method 'step'"):
    environment.resolve(f"{GAMES}:WithoutStep")
  with pytest.raises(
    ValueError, match="environment.name: got 'nowhere:Game', expected an importable module:class"
  ):
    environment.resolve("nowhere:Game")
