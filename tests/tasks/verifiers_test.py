"""Verifiers: what is right, what is not, and what can't be judged."""

import json
import sys

import pytest

from offpolicy_rl.tasks import scoring, symbolic, verifiers
from tests.tasks import scores


@pytest.mark.parametrize(
  ("completion", "answer", "reward"),
  [
    (" 5 ", "5", 1.0),
    ("5.", "5", 0.0),
    ("five <answer> 5</answer>", "5", 1.0),
    ("<think>6</think>\n5", "5", 1.0),
    ("<think> say <answer>5</answer>, or", "5", 0.0),
    ("5 <answer>6</answer>", "5", 0.0),
  ],
)
def test_exact_is_exact(completion, answer, reward):
  assert verifiers.exact(completion, json.dumps(answer)) == reward


@pytest.mark.parametrize(
  ("completion", "answer", "reward"),
  [
    ("That makes 336*5 = 1680 cars.\n#### 1,680", "1,680", 1.0),
    ("1680.00 cars", "1,680", 1.0),
    ("1680.01 cars", "1,680", 0.0),
    (r"\boxed{\$8.75}", "8.75", 1.0),
    (r"\boxed{35/4}", "8.75", 1.0),
    (r"\boxed{-\frac{1}{2}}", "1/2", 0.0),
    (r"\boxed{-\frac{1}{2}}", r"-\frac12", 1.0),
    (r"\boxed{- 7}", "7", 0.0),
    ("#### - 7", "-7", 1.0),
    (r"\boxed{\sqrt{2}}", "2", 0.0),
    (r"\boxed{x^2}", "2", 0.0),
    (r"\boxed{9,\!500}", "9500", 1.0),
    ("#### 5\n\n####", "5", 1.0),
    ("<think> 2 + 3 = 5", "5", 0.0),
    (r"<think> perhaps \boxed{5}, but", "5", 0.0),
    (r"<think> perhaps \boxed{5} </think> I can't say.", "5", 0.0),
    ("2 + 3 </think> 5", "5", 1.0),
    ("-4 degrees", "-4", 1.0),
    ("4 degrees", "-4", 0.0),
    ("", "5", 0.0),
    (" ".join(map(str, range(1000))), "5", 0.0),  # listing candidates
    ("<answer>" + " ".join(map(str, range(1000))) + "</answer>", "5", 0.0),
  ],
)
def test_numbers_are_compared_by_value(completion, answer, reward):
  assert verifiers.numeric(completion, json.dumps(answer)) == reward


def test_a_right_answer_that_is_no_number_can_not_be_judged_as_one():
  with pytest.raises(ValueError, match="got 'blue', expected one number"):
    verifiers.numeric("blue", json.dumps("blue"))


MATHS = [
  (r"The answer is $\frac{1}{2}$.", r"\frac{1}{2}", 1.0),
  (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
  ("1/2", r"\frac{1}{2}", 1.0),
  (r"<answer>\frac{2}{4}</answer>", r"\frac{1}{2}", 1.0),
  (r"<answer>1/2</answer> or \boxed{7}", r"\frac{1}{2}", 1.0),
  (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
  (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1.0),
  (r"\boxed{[0, 1)}", "[0,1)", 1.0),
  (r"\boxed{(0, 1)}", "[0,1)", 0.0),
  (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", 0.0),
  ("I do not know.", "5", 0.0),
  ("", "5", 0.0),
  ("{{{{ \\frac{", "5", 0.0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), MATHS)
def test_mathematics_is_compared_as_such(completion, answer, reward):
  assert symbolic.math_verify(completion, json.dumps(answer)) == reward


def test_mathematics_that_takes_for_ever_is_cut_off_by_the_worker():
  name = verifiers.NAMED["math_verify"]
  texts = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{5}"]
  with scoring.Scorer(name, workers=1, time_limit=3.0, memory_mb=1024) as scorer:
    rewards, failures = scores.rewards(scorer, texts, json.dumps("5"))
  assert rewards == [0.0, 1.0] and failures <= 1


def test_in_a_mixture_every_problem_brings_its_verifier(monkeypatch):
  monkeypatch.setattr(scoring, "_ALLOWED", {})
  scoring.allow([verifiers.NAMED["numeric"], verifiers.NAMED["exact"]])
  numeric = verifiers.mixture_answer(verifiers.NAMED["numeric"], json.dumps("1,680"))
  exact = verifiers.mixture_answer(verifiers.NAMED["exact"], json.dumps("1,680"))
  assert verifiers.mixture("1680", numeric) == 1.0
  assert verifiers.mixture("1680", exact) == 0.0


def test_answer_data_can_not_have_a_module_imported(monkeypatch):
  monkeypatch.setattr(scoring, "_ALLOWED", {})
  monkeypatch.delitem(sys.modules, "tests.tasks.own_verifier", raising=False)
  scoring.allow([verifiers.NAMED["numeric"]])
  for name in ("tests.tasks.own_verifier:fails_on_even", "os:system", verifiers.NAMED["exact"]):
    with pytest.raises(ValueError, match=f"'{name}', expected one of the configured .*:numeric$"):
      verifiers.mixture("true", verifiers.mixture_answer(name, "0"))
  assert "tests.tasks.own_verifier" not in sys.modules


def test_a_worker_of_a_mixture_knows_the_configured_verifiers_only():
  numeric, exact = (
    verifiers.mixture_answer(verifiers.NAMED[name], json.dumps("5"))
    for name in ("numeric", "exact")
  )
  also = [verifiers.NAMED["numeric"]]
  with scoring.Scorer(verifiers.MIXTURE, also=also, workers=1, time_limit=10.0) as scorer:
    assert scores.rewards(scorer, ["5"], numeric) == ([1.0], 0)
    assert scores.rewards(scorer, ["5"], exact) == ([0.0], 1)


def test_answer_data_keeps_tuples():
  """arc_agi and rearc compare grids of tuples: as lists their own answers would be wrong."""
  value = {"a": ((1, 2), [3, (4,)]), "b": {"c": "x"}}
  assert verifiers.loads(verifiers.dumps(value)) == value


def test_the_answers_of_every_kind_of_task_hold_a_text():
  assert verifiers.gold(json.dumps("5")) == "5"
  assert verifiers.gold(verifiers.dumps({"dataset": "x", "entry": {"answer": "7"}})) == "7"


def test_a_verifier_whose_package_is_missing_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "math_verify", None)
  monkeypatch.delitem(sys.modules, "offpolicy_rl.tasks.symbolic")
  with pytest.raises(ValueError, match=r"math_verify needs its package: pip install .*\[math\]"):
    scoring.resolve(verifiers.NAMED["math_verify"])


READABLE = [
  ("numeric", "72"),
  ("numeric", r"-\frac12"),
  ("numeric", "5 apples"),
  ("exact", "blue"),
  ("math_verify", r"2\sqrt{3}"),
  ("math_verify", r"\{1, 2\}"),
]


def test_the_right_answer_is_found_in_a_mixture_too():
  """A judge is told it."""
  entry = json.dumps({"dataset": "gcd", "entry": {"answer": "7", "metadata": {}}})
  for answer, right in ((json.dumps("5"), "5"), (entry, "7")):
    assert verifiers.gold(answer) == right
    assert verifiers.gold(verifiers.mixture_answer("m:f", answer)) == right


@pytest.mark.parametrize(("name", "right"), READABLE)
def test_right_answers_that_can_be_judged(name, right):
  assert verifiers.why_unusable(name, json.dumps(right)) is None
  assert verifiers.why_unusable(verifiers.NAMED[name], json.dumps(right)) is None
  mixed = verifiers.mixture_answer(verifiers.NAMED[name], json.dumps(right))
  assert verifiers.why_unusable(verifiers.MIXTURE, mixed) is None


@pytest.mark.parametrize(
  ("name", "right", "why"),
  [
    ("numeric", "blue", "answer: got 'blue', expected one number"),
    ("numeric", r"2\sqrt{3}", "expected one number"),
    ("numeric", "12, 18", "expected one number"),
    ("numeric", "", "expected one number"),
    (
      "numeric",
      "3 * 24 = 72\n#### 72",
      "expected one number: only what follows '####', as task.name=gsm8k reads it",
    ),
    ("exact", "", "answer: it is empty"),
    ("exact", "<think> hm", "answer: '<think> hm' given as an answer is not found right"),
    ("exact", "a <answer>b</answer>", "is not found right"),
    ("math_verify", "", "answer: it is empty"),
  ],
)
def test_right_answers_that_can_not_be_judged_are_said_to_be_so(name, right, why):
  assert why in verifiers.why_unusable(name, json.dumps(right))
  mixed = verifiers.mixture_answer(name, json.dumps(right))
  assert why in verifiers.why_unusable(verifiers.MIXTURE, mixed)


def test_of_your_own_verifier_only_what_it_raises_is_known():
  name = "tests.tasks.own_verifier:fails_on_even"
  assert verifiers.why_unusable(name, '"abc"') is None
  assert verifiers.why_unusable(name, '"ab"') == "even"
