"""Final answers of completions, and majority votes against counting by hand."""

import itertools

import numpy as np
import pytest

from offpolicy_rl.sampler import votes
from offpolicy_rl.tasks import extraction

ANSWERS = [
  ("so 3 + 4 = 7.", "7"),
  ("<answer> 12 </answer> or <answer>1,300.50</answer> and 9", "2601/2"),
  (r"\boxed{1} no, \boxed{\frac{3}{4}} of 8", "3/4"),
  (r"\boxed{0.75}", "3/4"),
  (r"\boxed{\{A, b\}}", r"\{a, b\}"),
  (r"\boxed{(0, 1]}", "(0, 1]"),
  ("The answer is 12, since 3*4=12.", "12"),
  ("so 72km", "72"),
  (r"Thus $\boxed{x = -5}$.", "-5"),
  ("He pays 5 * 2 = 10 dollars\n#### 10\n", "10"),
  ("The answer is: $18 per day.", "18"),
  ("The answer is Blue!", "the answer is blue"),
  ("3/4", "3/4"),
  ("0.75", "3/4"),
  ("+7", "7"),
  ("5-3", "3"),
  ("1/0", "1/0"),
  ("Let me see.\n Olleh! \n", "olleh"),
  ("  \n", None),
  ("", None),
  ("<answer></answer> 5", None),
  ("9" * 9999, "9" * 9999),  # too long for a number,
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS, ids=lambda x: repr(x)[:20])
def test_final_answer(text, answer):
  assert votes.final_answer(text, finished=True) == answer


@pytest.mark.parametrize("text", [text for text, _ in ANSWERS], ids=lambda x: repr(x)[:20])
def test_votes_are_for_the_number_that_is_judged(text):
  number = extraction.number(text)
  assert number is None or votes.final_answer(text, finished=True) == str(number)


def test_many_open_tags_take_no_time():
  """A search for each one's end would be quadratic: half an hour for this text."""
  assert votes.final_answer("<answer>" * 100_000 + "5", finished=True) == "5"


def test_a_completion_that_has_not_answered_has_no_vote():
  for text in ("first 3 + 4 = 7, then", "#### 7\nLet me ch", "7"):
    assert votes.final_answer(text, finished=False) is None
  assert votes.final_answer("<think> 7 is \\boxed{7}", finished=True) is None
  assert votes.final_answer("<think> 7? </think> blue", finished=True) == "blue"


@pytest.mark.parametrize(
  ("answers", "correct", "expected"),
  [
    ("aab", [1, 1, 0], 1.0),
    ("abb", [1, 0, 0], 0.0),
    ("abc", [1, 0, 0], 1 / 3),  # a tie of three
    ("aabbc", [1, 1, 0, 0, 0], 0.5),
    ([None, None, "a"], [0, 0, 1], 1.0),  # who says nothing has no vote
    ([None, None], [0, 0], 0.0),
    (["7", "7", "7", "8"], [1, 1, 0, 0], 2 / 3),  # the verifier took one of them for wrong
  ],
)
def test_a_vote(answers, correct, expected):
  assert votes.vote(list(answers), correct) == pytest.approx(expected)
  for order in itertools.permutations(range(len(answers))):
    shuffled = votes.vote([answers[i] for i in order], [correct[i] for i in order])
    assert shuffled == pytest.approx(expected)


def test_majority_at_k_is_right_on_average():
  """Over all orders of the samples: the mean vote of all subsets of k."""
  answers, right = ["a", "a", "b", "b", "c"], {"a"}
  correct = [a in right for a in answers]
  subsets = list(itertools.combinations(range(5), 2))
  exact = np.mean([votes.vote([answers[i] for i in s], [correct[i] for i in s]) for s in subsets])
  orders = list(itertools.permutations(range(5)))
  found = [votes.majority_at_k([answers[i] for i in o], [correct[i] for i in o], 2) for o in orders]
  assert np.mean(found) == pytest.approx(exact) and np.std(found) > 0
  assert votes.majority_at_k(answers, correct, 5) == 0.5
  with pytest.raises(ValueError, match="k: 6, expected 1 to the 5 samples"):
    votes.majority_at_k(answers, correct, 6)
