r"""Numbers are read whole or not at all."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl.tasks import numerals

NUMBERS = [
  (r"-\frac{1}{2}", "-1/2"),
  ("- 7", -7),
  ("−7", -7),
  (r"9,\!500", 9500),
  (r"9\,500", 9500),
  ("9{,}500", 9500),
  (r"\frac12", "1/2"),
  (r"\frac1{2}", "1/2"),
  (r"\frac{1}2", "1/2"),
  (r"\frac 1 2", "1/2"),
  (r"\dfrac{-3}{4}", "-3/4"),
  (r"\tfrac{1,000}{3}", "1000/3"),
  ("(5)", 5),
  ("-(3)", -3),
  (r"\left(5\right)", 5),
  ("$5", 5),
  (r"\$5", 5),
  ("-$5", -5),
  ("$-5", -5),
  (r"-\$5.50", "-11/2"),
  ("€5", 5),
  ("5€", 5),
  ("5 $", 5),
  ("50%", 50),
  (r"50\%", 50),
  ("50 percent", 50),
  (r"30^\circ", 30),
  (r"30^{\circ}", 30),
  ("30°", 30),
  ("30°C", 30),
  (r"30^\circ\text{C}", 30),
  ("5 apples", 5),
  (r"5\text{ apples}", 5),
  (r"5\text{ cm}^2", 5),
  (r"5 \text{ m/s}", 5),
  (r"5\,\mathrm{m}", 5),
  (r"5\mbox{ m}^3", 5),
  ("x = 5", 5),
  ("x=-5", -5),
  (r"\theta = 30^\circ", 30),
  ("f(2)=5", 5),
  ("2+3=5", 5),
  ("336*5 = 1680", 1680),
  (r"12 \times 6 = 72", 72),
  ("72 = 72", 72),
  ("1/2 = 0.5", "1/2"),
  (r"\text{Area} = 5", 5),
  ("AB=5", 5),
  ("x_1 = 5", 5),
  (".5", "1/2"),
  ("0.50", "1/2"),
  ("-.5", "-1/2"),
  ("1.5e3", 1500),
  ("1E-2", "1/100"),
  (r"1.5 \times 10^3", 1500),
  (r"1.5\times10^{-3}", "3/2000"),
  ("1.5 x 10^3", 1500),
  ("1.5 × 10³", 1500),
  (r"1\frac12", "3/2"),
  (r"-1\frac{1}{2}", "-3/2"),
  ("1 1/2", "3/2"),
  ("½", "1/2"),
  ("1½", "3/2"),
  ("3/4", "3/4"),
  ("3 / 4", "3/4"),
  ("-3/4", "-3/4"),
  ("5.", 5),
  ("$5$", 5),
  (r"\(5\)", 5),
  (r"$\frac{1}{2}$", "1/2"),
  ("**5**", 5),
  ("5**", 5),
  ("5 million", 5000000),
  ("1,234,567.89", "123456789/100"),
  (r"1\ 000\ 000", 1000000),
  ("1 000 000", 1000000),
  ("The answer is 5.", 5),
  ("Answer: 5", 5),
  ("72km", 72),
  ("3rd", 3),
  (r"0.\overline{3}", "1/3"),
  (r"1.2\overline{34}", "611/495"),
  ("5 m", 5),
  ("+7", 7),
  ("5 miles per hour", 5),
  ("5 m/s", 5),
  (r"\frac{3}{4}\text{ cup}", "3/4"),
  ("1,000 dollars", 1000),
  ("$1,000.", 1000),
  ("{5}", 5),
  ("5 ft^2", 5),
  ("５", 5),
  ("٣", 3),
  ("5-year", 5),
  ("$18 per day", 18),
  ("5 (dollars)", 5),
  ("about 5", 5),
  (r"\approx 3.14", "157/50"),
  (r"x \approx 3.14", "157/50"),
  ("5 dollars and cents", 5),
  ("-5 degrees", -5),
  ("Answer: - 7", -7),
  ("5 times", 5),
  (r"$\$5$", 5),
  (r"{\bf 5}", 5),
  (r"\color{red}{5}", 5),
  (r"\underline{5}", 5),
  (r"5^{\text{th}}", 5),
  (r"\frac{{1}}{{2}}", "1/2"),
  (r"{1 \over 2}", "1/2"),
  (r"\frac{1}{2}\%", "1/2"),
  ("10 p.m.", 10),
  (r"\mathbf{-5}", -5),
  (r"\$5{,}000", 5000),
  ("8 dozen", 8),
  ("1e400", 10**400),
  ("5元", 5),
  ("答案是-5。", -5),
  ("5,000円", 5000),
  ("정답은 5입니다", 5),
  (r"5\text{元}", 5),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS, ids=lambda x: str(x)[:30])
def test_numbers_are_read_exactly(text, value):
  assert numerals.read(text) == Fraction(value)


NOT_NUMBERS = [
  r"\sqrt{2}",
  r"2\sqrt{2}",
  "x^2",
  "2^2",
  "10^6",
  r"2\pi",
  r"2\mathbf{i}",
  r"5\boldsymbol{v}",
  r"2\mathrm{k}",
  "5!",
  r"(-\infty,3)",
  "(2,3)",
  "2,3",
  "[2,3]",
  "5x",
  "x",
  "3x=15",
  "2n",
  "5 or 6",
  "5-6",
  "6:30",
  "4210_5",
  r"\{5\}",
  "5 and 6",
  "1,6800",
  "1.234.567",
  "1/0",
  r"\frac{1}{0}",
  "1/2/3",
  "5+3",
  "x+y=5",
  "5=6",
  "--7",
  r"\pm 5",
  "5 half",
  "five",
  "",
  "none",
  "5xy",
  "2ab",
  r"\frac{1}{2}\frac13",
  r"2\frac{3}{2}",
  "0.333...",
  "not 5",
  "minus 5",
  "3 thirds",
  "5 million 3",
  "1e9999",
  "x-4",
  "GPT-4",
  "5^2",
  "5²",
  "5₂",
  "x<5",
  "|5|",
  "5i",
  "3+4i",
  r"\log 5",
  r"5 \text{ or } 6",
  r"\binom{5}{2}",
  "2024-01-05",
  "5 x 3",
  r"5\cdot 3",
  "more than 5",
  "1e5e5",
  r"\frac{\pi}{3}",
  r"\frac{x}{2}",
  "C3",
  "H2O",
  "A5",
  "$$",
  "5--",
  "((5)",
  "5)",
  "5, 5",
  r"\boxed{5}",
  "e",
  "5e",
  r"5\times",
  "5/",
  "9" * 301,
  "0x10",
  "1_000",
  "+-5",
  r"5 \over x",
  r"5\mathrm{i}",
  r"5\mathrm{e}",
  r"5\text{x}",
  "5万元",
  r"5\text{万}",
  "5的平方",
  "5分之2",
  "负5",
  "答案不是5",
]


@pytest.mark.parametrize("text", NOT_NUMBERS, ids=lambda x: x[:30])
def test_what_has_other_mathematics_in_it_is_no_number(text):
  assert numerals.read(text) is None
  assert numerals.read(text, latex=True) is None


@pytest.mark.parametrize(
  ("text", "value"),
  [("5m", None), ("5 m", None), ("2ab", None), ("5km", 5), ("5 apples", 5), (r"5\text{m}", 5)],
)
def test_a_letter_in_a_formula_is_a_variable(text, value):
  assert numerals.read(text, latex=True) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 999))
def test_any_written_number_is_read(whole, thousandths):
  sign, size = "-" * (whole < 0), f"{abs(whole):,}.{thousandths:03d}"
  value = Fraction((sign + size).replace(",", ""))
  for text in (sign + size, f"{sign} {size}", f"{sign}${size}", f"it is {sign}{size} dollars."):
    assert numerals.read(text) == value
  assert numerals.read(sign + size.replace(",", r"\,"), latex=True) == value


@given(st.integers(-99, 99), st.integers(1, 99), st.sampled_from(["", "d", "t"]))
def test_any_fraction_is_read(above, below, kind):
  sign, size = "-" * (above < 0), abs(above)
  for text in (
    rf"{sign}\{kind}frac{{{size}}}{{{below}}}",
    rf"\{kind}frac{{{above}}}{{{below}}}",
    rf"{sign} \{kind}frac{{ {size} }}{{ {below} }}",
    f"{above}/{below}",
    f"x = {above} / {below}",
  ):
    assert numerals.read(text) == Fraction(above, below)


@given(st.text(alphabet="0123456789,.-/$%e \\{}x<>#½²()=fractsqin", max_size=60))
def test_no_text_raises(text):
  numerals.read(text)
