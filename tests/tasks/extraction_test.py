"""Which number, which text a completion answers with."""

import json
import pathlib
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl.tasks import extraction, numerals, verifiers

GSM8K = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k"

ANSWERS = [
  ("First 12, then 72.", 72),
  ("12 * 6 = 72\n#### 72", 72),
  ("#### 5\nNo:\n#### 72\nDone 9", 72),
  (r"so \boxed{\frac{1}{2}} of 9", "1/2"),
  (r"\boxed{5} or \boxed{72}", None),
  (r"\boxed{5} no, rather \boxed{72}", 72),
  ("<answer>\n72 apples\n</answer> 5", 72),
  (r"<answer>72</answer> \boxed{5} #### 6", 72),
  (r"\boxed{72} #### 6", 72),
  ("<answer>1 2 3 72</answer>", None),
  ("#### 5 or 72", None),
  ("<answer>72 = 72</answer>", 72),
  ("<answer></answer> 72", None),
  ("#### none, but 5", None),
  (r"72 \boxed{", 72),
  ("<answer>72", 72),
  ("</answer>5<answer>", 5),
  ("no idea", None),
  ("so 3 + 4 = 7.", 7),
  ("The answer is 12, since 3*4=12.", 12),
  ("so 72km", 72),
  (r"Thus $\boxed{x = -5}$.", -5),
  ("He pays 5 * 2 = 10 dollars\n#### 10\n", 10),
  ("The answer is: $18 per day.", 18),
  ("3/4", "3/4"),
  ("0.75", "3/4"),
  ("+7", 7),
  ("5-3", None),
  ("1/0", None),
  ("9" * 9999, None),
  ("#### 5\n\n####", 5),
  ("#### - 7", -7),
  (r"The answer is 2\sqrt{3}.", None),
  ("The answer is 2√3", None),
  (r"so $(-\infty, 3)$", None),
  ("so (-inf, 3)", None),
  ("x^2", None),
  ("It is x^2.", None),
  ("I think 5!", 5),
  ("It is 5! ways", None),
  ("= 5!", None),
  ("x2 3rd 72km of H2O", 72),
  ("1680.00 cars", 1680),
  ("-4 degrees", -4),
  ("4 degrees", 4),
  ("2024-01-05", None),
  ("at 6:30", None),
  ("Answer: 5", 5),
  ("Answer: -5", -5),
  ("is 5 - the end", 5),
  ("(about 5)", 5),
  ("He has 5 (2 + 3)", None),
  ("costs $5 and $x$", 5),
  (r"The answer is $\frac{1}{2}$.", "1/2"),
  (r"The answer is \(x = \frac{1}{2}\).", "1/2"),
  ("**5**", 5),
  ("The answer is **5**.", 5),
  ("2**3", None),
  ("5 million people", 5000000),
  ("about 5 and a half", None),
  ("minus 5", None),
  ("x > 5", None),
  ("x-4", None),
  ("GPT-4", None),
  ("- 7 apples", None),
  ("1. Blue\n2. Red", None),
  ("$5.50", "11/2"),
  ("a 5-year plan", 5),
  ("is 5x", None),
  ("is 5xy", None),
  ("is 3x + 5", None),
  ("y = 5", 5),
  ("= -6", -6),
  ("=-6", -6),
  ("1,6800", None),
  ("1,680 and 12,345,678", 12345678),
  (r"\boxed{12} and \boxed{18}", None),
  ("\\boxed{5}\n\n\\boxed{}", 5),
  (r"<answer>\boxed{5}</answer>", 5),
  ("<answer>5</answer><answer> </answer>", 5),
  (r"\boxed 5", 5),
  (r"\fbox{5}", 5),
  (r"\boxed{\boxed{5}}", 5),
  ("<answer>#### 5</answer>", 5),
  ("Total: 84%", 84),
  ("½ of it", "1/2"),
  ("is 1½.", "3/2"),
  ("[72]", None),
  ("the 5th", 5),
  ("He needs 5, 6", 6),
  ("1.5e3", 1500),
  ("1.5 × 10^3", 1500),
  (r"1.5 \times 10^{3}", 1500),
  ("so 10^3", None),
  ("I have 5.\n", 5),
  ("5 apples!", 5),
  ("Yes, 5?", 5),
  ("between 5 and 6 km", 6),
  ("“5”", 5),
  ("square root of 5", None),
  ("5 squared", None),
  ("twice 5", None),
  ("The answer is 30°.", 30),
  ("It's −7", -7),
  ("#### −7", -7),
  ("####5", 5),
  ("##### 5", 5),
  ("#### **5**", 5),
  ("**#### 5**", 5),
  (r"The final answer is $\boxed{9,\!500}$.", 9500),
  ("72 (seventy two)", 72),
  ("a) 5", 5),
  ("It takes 2 hours and 30 minutes.", None),
  ("He is 6 ft 2 in tall", None),
  ("It weighs 2 lbs 3 oz", None),
  ("It costs $18 and 50 cents.", None),
  ("She sold 18 eggs and earned 50 cents.", 50),
  ("So it's 3 to 4", None),
  ("So 3 out of 4", None),
  ("It is half of 5", None),
  ("That is 20% of 50", None),
  ("2 to the power of 5", None),
  ("5 to the 3", None),
  ("leaves 5 remainder 2", None),
  ("It's not 5.", None),
  ("so A != 5", None),
  ("so A >= 5", None),
  ("=> 42", 42),
  ("-> 42", 42),
  ("| Total | 5 |", 5),
  ("#### Answer\n5", 5),
  ("#### Step 4: total\nShe has 6.", 6),
  ("#### Solution 2\nIt is 5.", 5),
  ("#### 5\n#### Check\n2 + 3 = 5, not 6", 5),
  ("#### Step 3", None),
  ("#### none\n5", None),
  ("所以小明有5个苹果。", 5),
  ("答案：5", 5),
  ("共有5万人", None),
  ("5小时30分钟", None),
  ("3加5", None),
]


@pytest.mark.parametrize(("text", "value"), ANSWERS, ids=lambda x: repr(x)[:30])
def test_the_number_that_is_answered_with(text, value):
  assert extraction.number(text) == (None if value is None else Fraction(value))


@given(st.text(alphabet="0123456789,.-/$%e \\{}x<>#½()=boxed<answer>", max_size=80))
def test_no_text_raises(text):
  extraction.number(text)
  extraction.last_boxed(text)


# What stands beside a box in its formula belongs to the answer; dashes, bullets and text do not.
BESIDE = [
  (r"-\boxed{5}", -5),
  (r"$x = -\boxed{5}$", -5),
  (r"= - \boxed{\frac{1}{2}}", -Fraction(1, 2)),
  (r"the answer is -\boxed{7}", -7),
  (r"\boxed{5}\times 10^3", 5000),
  (r"\boxed{5}/6", Fraction(5, 6)),
  (r"4 * \boxed{5}", None),
  (r"\boxed{5}\pi", None),
  (r"\boxed{2}\sqrt{3}", None),
  (r"\boxed{5}^2", None),
  (r"\boxed{5} + 3", None),
  (r"x-\boxed{7}", None),
  (r"5 - \boxed{7}", None),
  (r"3 \times \boxed{4} = 12", None),
  (r"2\boxed{4}", 4),
  ("- \\boxed{5}", 5),
  ("so:\n- \\boxed{5}", 5),
  (r"Answer - \boxed{5}", 5),
  (r"**\boxed{5}**", 5),
  (r"*\boxed{5}*", 5),
  (r"\boxed{5}^\circ", 5),
  (r"\boxed{5}^{\circ}", 5),
  (r"\boxed{5}\%", 5),
  (r"\boxed{5}!", 5),
  (r"\boxed{5} - as said", 5),
  (r"$\boxed{5}$ apples and 3 pears", 5),
  (r"3 + 4 = \boxed{7}", 7),
  (r"\[ \boxed{7} \]", 7),
  (r"(\boxed{7})", 7),
  (r"→\boxed{5}", 5),
]


@pytest.mark.parametrize(("text", "value"), BESIDE, ids=lambda x: repr(x)[:30])
def test_a_box_is_read_with_what_its_formula_does_to_it(text, value):
  assert extraction.number(text) == value


def test_boxes():
  assert extraction.last_boxed(r"\boxed{\frac{1}{\sqrt{2}}}, x") == r"\frac{1}{\sqrt{2}}"
  assert extraction.last_boxed(r"\boxed{1} \boxed{2") == "1"
  assert extraction.last_boxed("boxed{1}") is None
  assert extraction.last_boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
  assert extraction.last_boxed(r"\boxed{\left\{ x \right.}") == r"\left\{ x \right."
  assert extraction.last_boxed(r"\fbox{1}") == extraction.last_boxed(r"\boxed 1") == "1"
  assert extraction.last_boxed(r"\boxed{1} \boxed{ }") == "1"
  assert extraction.last_boxed(r"\boxed{}") == ""


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (r"$\boxed{12}$ and $\boxed{18}$", ["12", "18"]),
    (r"$x = \boxed{12}, y = \boxed{18}.$", ["12", "18"]),
    (r"\boxed{1}, \boxed{2}, and \boxed{3}", ["1", "2", "3"]),
    (r"\boxed{1}\text{ or }\boxed{2}", ["1", "2"]),
    (r"\boxed{5} ... \boxed{5}", ["5"]),
    (r"\boxed{5}. No, it is \boxed{6}", ["6"]),
    (r"\boxed{5}" + "\n\n" + r"\boxed{6}", ["6"]),
    ("", []),
  ],
)
def test_boxes_that_are_listed_are_one_answer(text, expected):
  assert extraction.boxes(text) == expected


PIECES = [
  "<answer>",
  "</answer>",
  "<answer></answer>",
  r"\boxed{",
  r"\boxed{}",
  r"\boxed{1} and ",
  r"\boxed ",
  "####",
  "#### \n",
  "#",
  "1,",
  "1 / ",
  "-",
  "1" * 50,
  "x2",
  "½",
  "{",
  "}",
  r"\frac{",
  r"\text{",
  "( ",
  "\n",
  " ",
  "٣x",
  "<think>",
]


@pytest.mark.parametrize("piece", PIECES)
def test_reading_takes_time_linear_in_the_text(piece):
  """A quadratic reading of these would take minutes."""
  start = time.process_time()
  for before in ("", "#### ", r"\boxed{"):
    extraction.number(before + piece * (200_000 // len(piece)))
  assert time.process_time() - start < 5


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"{GSM8K} is not there")
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_of_gsm8k_is_right_for_itself(split):
  rows = [json.loads(line) for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]
  prose = 0
  for i, row in enumerate(rows):
    shown = re.sub(r"<<[^<>]*>>", "", row["answer"])
    worked, _, answer = shown.rpartition("####")
    answer = answer.strip()
    texts = [answer, shown]
    if i % 10 == 0:
      texts += [rf"\boxed{{{answer}}}", f"The answer is ${answer}.", f"**{answer}**"]
      prose += extraction.number(worked) == numerals.read(answer)
    for text in texts:
      assert verifiers.numeric(text, json.dumps(answer)) == 1.0, (text, answer)
  assert len(rows) in (7473, 1319) and prose > 0.095 * len(rows)
