"""Which number, which text a completion answers with."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl.tasks import extraction

NUMBERS = [
  ("72", [72]),
  ("1,680 and 12,345,678", [1680, 12345678]),
  ("1,2,3", [1, 2, 3]),
  ("1,6800", [1, 6800]),
  ("$8.75.", ["8.75"]),
  ("-4, −5, +6, -$7, $-8", [-4, -5, 6, -7, -8]),
  ("5-6 and 5 - 6", [5, 6, 5, 6]),
  ("=-6", [-6]),
  ("x2 3rd 72km H2O", [3, 72]),
  ("84%", [84]),
  ("3/4", ["3/4"]),
  ("3 / 4", ["3/4"]),
  (r"\frac{3}{4} \dfrac{ -3 }{4}", ["3/4", "-3/4"]),
  ("1/0", []),
  (".5 0.50", ["1/2", "1/2"]),
  ("2.5e3 1E-2", [2500, "1/100"]),
  (r"1{,}680 \$5", [1680, 5]),
  ("2024-01-05", [2024, 1, 5]),
  ("9" * 101, []),
  ("1e999999999", [1]),
  ("", []),
  ("no number", []),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS, ids=[n[0][:20] for n in NUMBERS])
def test_numbers_are_read_exactly(text, expected):
  if text == "1e999999999":  # not raised to that power, and not taken for something it is not
    assert extraction.numbers(text) == [1]
    return
  assert extraction.numbers(text) == [Fraction(x) for x in expected]


@given(st.integers(-(10**12), 10**12), st.integers(0, 999))
def test_any_written_number_is_found(whole, thousandths):
  text = f"{whole:,}.{thousandths:03d}"
  assert extraction.numbers(f"It is {text} altogether.") == [Fraction(text.replace(",", ""))]


@given(st.text(alphabet="0123456789,.-/$%e \\{}x<>#", max_size=60))
def test_no_text_raises(text):
  extraction.number(text)
  extraction.last_boxed(text)


ANSWERS = [
  ("First 12, then 72.", 72),
  ("12 * 6 = 72\n#### 72", 72),
  ("#### 5\nNo:\n#### 72\nDone 9", 72),
  (r"so \boxed{\frac{1}{2}} of 9", Fraction(1, 2)),
  (r"\boxed{5} or \boxed{72}", 72),
  ("<answer>\n72 apples\n</answer> 5", 72),
  (r"<answer>72</answer> \boxed{5} #### 6", 72),  # tags before boxes before ####
  (r"\boxed{72} #### 6", 72),
  ("<answer>1 2 3 72</answer>", None),  # a list is no answer
  ("#### 5 or 72", None),
  ("<answer>72 = 72</answer>", 72),
  ("<answer></answer> 72", None),
  ("#### none, but 5", 5),
  (r"72 \boxed{", 72),  # never closed: no mark
  ("<answer>72", 72),
  ("</answer>5<answer>", 5),
  ("no idea", None),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS, ids=[a[0][:25] for a in ANSWERS])
def test_the_marked_number_counts_and_only_it(text, expected):
  assert extraction.number(text) == expected


def test_braces_inside_a_box_are_matched():
  assert extraction.last_boxed(r"\boxed{\frac{1}{\sqrt{2}}}, x") == r"\frac{1}{\sqrt{2}}"
  assert extraction.last_boxed(r"\boxed{1} \boxed{2") == "1"
  assert extraction.last_boxed("boxed{1}") is None


@pytest.mark.parametrize("piece", ["<answer>", r"\boxed{", "####", "1,", "1 / ", "-", "1" * 50])
def test_reading_takes_time_linear_in_the_text(piece):
  start = time.process_time()
  extraction.number(piece * (400_000 // len(piece)))
  assert time.process_time() - start < 2
