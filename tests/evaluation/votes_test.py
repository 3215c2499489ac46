"""Final answers of completions, and majority votes against counting by hand."""

import itertools
import json

import numpy as np
import pytest

from offpolicy_rl.evaluation import votes
from offpolicy_rl.tasks import extraction, verifiers

ANSWERS = [
  ("so 3 + 4 = 7.", "7"),
  ("<answer> 12 </answer> or <answer>1,300.50</answer> and 9", "2601/2"),
  (r"\boxed{1} no, \boxed{\frac{3}{4}} of 8", "3/4"),
  (r"\boxed{0.75}", "3/4"),
  (r"\boxed{\{A, b\}}", r"\{A,b\}"),
  (r"\boxed{(0, 1]}", "(0,1]"),
  ("The answer is 12, since 3*4=12.", "12"),
  ("so 72km", "72"),
  (r"Thus $\boxed{x = -5}$.", "-5"),
  ("He pays 5 * 2 = 10 dollars\n#### 10\n", "10"),
  ("The answer is: $18 per day.", "18"),
  ("The answer is Blue!", "the answer is blue"),
  ("3/4", "3/4"),
  ("0.75", "3/4"),
  ("+7", "7"),
  ("5-3", "5-3"),
  ("1/0", "1/0"),
  ("Let me see.\n Olleh! \n", "olleh"),
  ("  \n", None),
  ("", None),
  ("<answer></answer> 5", None),
  ("9" * 9999, "9" * 9999),  # too long for a number
  (r"\boxed{(-\infty,3)}", r"(-\infty,3)"),
  (r"so $x \in (-\infty, 3)$", r"so$x\in(-\infty,3)"),
  (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}"),
  (r"\boxed{2\sqrt 3}", r"2\sqrt{3}"),
  (r"\boxed{5!}", "5!"),
  (r"\boxed{\text{Blue}}", "blue"),
  (r"\boxed{12} and \boxed{18}", r"\{12,18\}"),
  (r"\boxed{x < 3}", r"(-\infty,3)"),
  (r"\boxed{- \dfrac{1}{2}}", "-1/2"),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS, ids=lambda x: repr(x)[:20])
def test_final_answer(text, answer):
  assert votes.final_answer(text, finished=True) == answer


ALIKE = [
  [
    r"\boxed{-\frac{1}{2}}",
    "#### -0.5",
    "<answer>-1/2</answer>",
    "so it is -.5",
    r"\boxed{-\tfrac12}",
  ],
  [r"\boxed{\frac{1}{2}}", "½", r"\boxed{0.50}", "2/4"],
  [r"\boxed{9,\!500}", r"\boxed{9\,500}", "9,500", "#### 9500", r"\boxed{9.5 \times 10^3}"],
  [r"\boxed{3}", "<answer>x = 3</answer>", "3 apples", r"\boxed{3\text{ cm}}", "6/2"],
  [
    r"\boxed{(-\infty,3)}",
    r"\boxed{(-\infty, 3)}",
    r"\boxed{\left(-\infty,\,3\right)}",
    "<answer>x < 3</answer>",
  ],
  [r"\boxed{\sqrt{2}}", r"\boxed{ \sqrt{2} }", r"<answer>$\sqrt{2}$</answer>"],
  [r"\boxed{2\sqrt{2}}"],
  ["2", r"\boxed{2}", "the answer is 2."],
  [r"\boxed{2\pi}", r"\boxed{2 \pi}", "<answer>2π</answer>"],
  [r"\boxed{x^2}", "<answer>x²</answer>", r"\boxed{x^{2}}"],
  [r"\boxed{5!}", "<answer>5!</answer>"],
  ["#### 5", "5", "5.0"],
  [r"\boxed{120}"],
  [r"\boxed{(2, 3)}", r"\boxed{(2,3)}"],
  [r"\boxed{[2, 3]}"],
  [r"\boxed{6:30}", "<answer>6:30</answer>"],
  [r"\boxed{4210_5}", r"\boxed{4210_{5}}"],
  [r"\boxed{4210_7}"],
  [r"\boxed{\text{Tuesday}}", r"\boxed{Tuesday}", "<answer>tuesday</answer>"],
  [
    r"\boxed{12} and \boxed{18}",
    r"$\boxed{12}, \boxed{18}$",
    r"\boxed{18, 12}",
    r"\boxed{\{12, 18\}}",
    r"\boxed{x = 12 \text{ or } x = 18}",
  ],
  [r"\boxed{(12, 18)}", "<answer>(12,18)</answer>"],
  [r"\boxed{(18, 12)}"],
  [r"\boxed{-2 \le x < 7}", "<answer>[-2, 7)</answer>", r"\boxed{x \in [-2, 7)}"],
  [r"\boxed{x \ge 2 \text{ or } x < 1}", r"\boxed{(-\infty, 1) \cup [2, \infty)}"],
  [
    r"\boxed{\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}}",
    r"\boxed{\begin{bmatrix}1\\\frac12\end{bmatrix}}",
  ],
  [r"\boxed{\begin{pmatrix} 1 & 0.5 \end{pmatrix}}"],
  ["<answer>∅</answer>", r"\boxed{\varnothing}", r"\boxed{\{\}}"],
  [r"\boxed{18}"],
  [r"\boxed{k^2}"],
  [r"\boxed{K^2}"],
  [r"\boxed{f}"],
  [r"\boxed{f'}"],
  [r"\boxed{x=1, y=2}", r"\boxed{y=2, x=1}"],
  [r"\boxed{x=2, y=1}"],
  [r"\boxed{\mathbb{R}}", r"\boxed{(-\infty, \infty)}", "<answer>(-∞, +∞)</answer>"],
  [r"\boxed{\text{(B)}}", r"\boxed{B}"],
  [r"\boxed{3\mathrm{i}}", r"\boxed{3i}"],
  ["", "<think> 5", "<answer></answer>"],
]


def test_votes_are_together_exactly_where_answers_are_the_same():
  """Every pair of a corpus, both ways round: so it is an equivalence, with these classes."""
  corpus = [(i, text, votes.final_answer(text)) for i, alike in enumerate(ALIKE) for text in alike]
  for i, text, answer in corpus:
    for j, other, its_answer in corpus:
      assert (answer == its_answer) == (i == j), (text, other)


def test_votes_are_together_where_numeric_takes_the_one_for_the_other():
  corpus = [(text, votes.final_answer(text)) for alike in ALIKE for text in alike]
  numbers = {extraction.number(text) for text, _ in corpus} - {None}
  assert len(numbers) > 5
  for number in numbers:
    for text, answer in corpus:
      assert verifiers.numeric(text, json.dumps(str(number))) == (answer == str(number)), text


def test_a_wrong_root_does_not_outvote_the_right_number():
  """4 x 7, which is right, against 3 x sqrt(2) and 2 x 2: read as one number these would win."""
  texts = [r"\boxed{7}"] * 4 + [r"\boxed{\sqrt{2}}"] * 3 + [r"\boxed{2}"] * 2
  answers = [votes.final_answer(text) for text in texts]
  assert votes.vote(answers, [True] * 4 + [False] * 5) == 1.0


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
