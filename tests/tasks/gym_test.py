"""Every task of reasoning-gym: its own answer is right, what says nothing is not.

One problem of each is drawn; those that take long are drawn small.
"""

import pytest
import reasoning_gym
from reasoning_gym import factory

from offpolicy_rl.tasks import verifiers

JUDGED = sorted(set(factory.DATASETS) - set(verifiers.REFUSED))
SMALL = {
  "futoshiki": {"min_board_size": 4, "max_board_size": 4},
  "knight_swap": {"min_nodes": 6, "max_nodes": 6},
  "zebra_puzzles": {"num_people": 2, "num_characteristics": 2},
}
CONSTANTS = (
  "",
  " ",
  "0",
  "0.",
  "1",
  "-1",
  "2",
  "10",
  "100",
  "1e308",
  "1e-12",
  "0.5",
  "nan",
  "-nan",
  "NaN",
  "nan nan",
  "nanj",
  "inf",
  "-inf",
  "Infinity",
  "True",
  "False",
  "None",
  "null",
  "yes",
  "no",
  "list",
  "[]",
  "[[]]",
  "()",
  "{}",
  '""',
  "a",
  "A",
  "x",
  "-",
  "...",
  "0/1",
  "0,0",
  "0 0",
  "[0]",
  "[nan]",
  "(0, 0)",
  "1j",
  "i",
  "error",
  "solution",
  "answer",
  "I do not know.",
  "²",
  "٣",
  " ".join(map(str, range(-50, 300))),
  ", ".join(map(str, range(-50, 300))),
)
# Raises on these; what raises costs the completion its reward and is counted.
RAISES = {"prime_factorization": ValueError, "game_of_life": KeyError}


@pytest.fixture(scope="module")
def drawn():
  """A problem of a task, drawn once."""
  entries = {}

  def draw(name: str):
    if name not in entries:
      [entries[name]] = reasoning_gym.create_dataset(name, size=1, seed=3, **SMALL.get(name, {}))
    return entries[name]["answer"], verifiers.dumps({"dataset": name, "entry": entries[name]})

  return draw


def test_all_tasks_are_judged_or_refused():
  assert len(factory.DATASETS) == 106 and set(verifiers.REFUSED) <= set(factory.DATASETS)


@pytest.mark.parametrize("name", JUDGED)
def test_its_own_answer_is_right_whatever_space_is_around_it(drawn, name):
  right, answer = drawn(name)
  for text in (
    right,
    f" {right}",
    f"{right}\n",
    f"\n\n{right} \n",
    f"<answer>{right}</answer>",
    f"So:\n<answer>\n{right}\n</answer>",
    f"<think>hm</think>\n\n{right}",
    f"hm</think> {right}",
  ):
    assert verifiers.reasoning_gym(text, answer) == 1.0, text
  assert verifiers.reasoning_gym(f"<think>{right}", answer) == 0.0
  assert verifiers.why_unusable("reasoning_gym", answer) is None


@pytest.mark.parametrize("name", JUDGED)
def test_what_says_nothing_earns_nothing(drawn, name):
  right, answer = drawn(name)
  for text in CONSTANTS:
    if not _same(text, right):
      assert _reward(name, text, answer) != 1.0, text


def _reward(name: str, text: str, answer: str) -> float:
  try:
    return verifiers.reasoning_gym(text, answer)
  except RAISES.get(name, ()):
    return 0.0


def _same(text: str, right: str) -> bool:
  """The right answer, perhaps in another spelling."""
  try:
    return float(text) == float(right)
  except ValueError:
    return text.strip().casefold() == right.strip().casefold()
