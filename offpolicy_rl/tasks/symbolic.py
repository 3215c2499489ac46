r"""The verifier that understands mathematics; math-verify (extra "math") reads formulas for it.

Two answers are equal when they are of the same form (`forms.py`) and what is in them is equal:
numbers exactly, expressions by their values (`expressions.py`), all else as normalised text. A list
equals the set of its values, x = 5 equals 5, an inequality the interval that it describes.
"""

import importlib.util
import re

from offpolicy_rl.tasks import extraction, forms, latex, numerals, thoughts, verifiers

if importlib.util.find_spec("math_verify") is None:
  raise ValueError("task.verifier: math_verify needs its package: pip install offpolicy-rl[math]")

from offpolicy_rl.tasks import expressions  # imports what the package brings

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ANSWER_IS = re.compile(r".*\banswer(?:\s+is)?\s*:?\s+([^\n]+)", re.DOTALL | re.IGNORECASE)
_LONGEST_BARE = 80  # characters of a completion that may be just its answer
_LONGEST_SEARCHED = 4000  # characters at the end of a completion that are searched for a formula


@verifiers.verifier
def math_verify(completion: str, answer: str) -> float:
  r"""1.0 when the completion's answer equals the right one as mathematics.

  The answer is in <answer> tags, \boxed{...} or behind "####"; listed boxes ("\boxed{1} and
  \boxed{2}") are one answer. Without a mark it is the last formula, or what follows "answer is", or
  the text if it is short, or else the last number.
  """
  right = verifiers.gold(answer)
  if not right.strip():
    raise ValueError("answer: it is empty")
  if len(right) > numerals.LONGEST or "####" in right:
    raise ValueError(f"answer: got {right!r:.100}, expected a formula or a few words")
  given = answer_in(completion)
  return float(bool(given) and equal(right, given))


def answer_in(completion: str) -> str | None:
  """The text of a completion's answer; None if it has none."""
  text = thoughts.removed(completion)
  marked = None if text is None else extraction.marked_answer(text)
  if text is None or marked is not None:
    return marked
  text = text.strip()
  formulas = list(_FORMULA.finditer(text[-_LONGEST_SEARCHED:]))
  if formulas:
    return next(group for group in formulas[-1].groups() if group)
  sentence = _ANSWER_IS.match(text[-_LONGEST_SEARCHED:])
  if sentence:
    return sentence[1]
  if "\n" not in text and len(text) <= _LONGEST_BARE:
    return text
  number = extraction.number(text)
  return None if number is None else str(number)


def equal(right: str, given: str) -> bool:
  """Whether two formulas or texts are the same answer."""
  if latex.normal(right) == latex.normal(given):
    return bool(given.strip())
  return same(forms.parse(right), forms.parse(given))


def same(a: forms.Form, b: forms.Form) -> bool:
  """Whether two forms are the same answer."""
  if a.kind != b.kind:
    return _same_of_two_kinds(a, b) or _same_of_two_kinds(b, a)
  if a.kind == forms.NUMBER:
    return _same_numbers(a, b)
  if a.kind in (forms.SET, forms.UNION):
    if forms.is_ordered(a) != forms.is_ordered(b):
      return _same_all(a.parts, b.parts)
    return _matched(a.parts, b.parts)
  if a.kind == forms.TUPLE:
    return a.text == b.text and _same_all(a.parts, b.parts)
  if a.kind == forms.MATRIX:
    return len(a.parts) == len(b.parts) and all(map(_same_all, a.parts, b.parts))
  if a.kind == forms.EQUATION:
    return _same_equations(a, b)
  if a.kind == forms.INEQUALITY:
    return _same_inequalities(a, b)
  if a.kind == forms.EXPRESSION and not _units_differ(a, b):
    return a.text == b.text or _same_expressions(a, b)
  return a.kind == forms.TEXT and a.text == b.text


def _same_of_two_kinds(a: forms.Form, b: forms.Form) -> bool:
  if a.kind == forms.EQUATION and (forms.is_name(a.parts[0]) or _computes(a)):
    return same(a.parts[1], b)
  if (a.kind, b.kind) == (forms.NUMBER, forms.EXPRESSION):
    assert a.value is not None
    exact = forms.Form(forms.EXPRESSION, f"\\frac{{{a.value.numerator}}}{{{a.value.denominator}}}")
    return not _units_differ(a, b) and _same_expressions(exact, b)
  if {a.kind, b.kind} == {forms.TEXT, forms.EXPRESSION}:
    return a.text == b.text
  return False


def _same_numbers(a: forms.Form, b: forms.Form) -> bool:
  """Exact; 50% equals 50 and, if only one of the two has the sign, 1/2."""
  if "%" in (a.unit, b.unit) and a.unit != b.unit:
    percent, other = (a, b) if a.unit == "%" else (b, a)
    assert percent.value is not None
    return other.value in (percent.value, percent.value / 100)
  return a.value == b.value and not _units_differ(a, b)


def _units_differ(a: forms.Form, b: forms.Form) -> bool:
  """Whether both have a unit and it is not the same: 5 equals 5 cm, but 5 m does not."""
  return bool(a.unit and b.unit and a.unit != b.unit)


def _same_all(a, b) -> bool:
  return len(a) == len(b) and all(map(same, a, b))


def _matched(a, b) -> bool:
  covers = lambda these, those: all(any(same(x, y) for y in those) for x in these)
  return covers(a, b) and covers(b, a)


def _same_expressions(a: forms.Form, b: forms.Form) -> bool:
  try:
    return expressions.equal(a.text, b.text)
  except expressions.Unreadable:
    return False


def _same_equations(a: forms.Form, b: forms.Form) -> bool:
  """x = 5 is not y = 5; y = 2x + 3 is 2x - y + 3 = 0."""
  name, other = (latex.normal(form.parts[0].text) for form in (a, b))
  if name == other and same(a.parts[1], b.parts[1]):
    return True
  try:
    return expressions.proportional(_difference(a), _difference(b))
  except expressions.Unreadable:
    return False


def _computes(equation: forms.Form) -> bool:
  """Whether the left side is the right one written out, as in 5! = 120."""
  left, right = forms.parse(equation.parts[0].text), equation.parts[1]
  kinds = {left.kind, right.kind}
  return kinds.issubset({forms.NUMBER, forms.EXPRESSION}) and same(left, right)


def _difference(equation: forms.Form) -> str:
  left, sign, right = equation.text.partition("=")
  forms_of_sides = [forms.parse(side) for side in (left, right)]
  if not sign or any(f.kind not in (forms.EXPRESSION, forms.NUMBER) for f in forms_of_sides):
    raise expressions.Unreadable(f"{equation.text!r:.60} is no equation of expressions")
  return f"({left})-({right})"


def _same_inequalities(a: forms.Form, b: forms.Form) -> bool:
  flipped = forms.flipped(b)
  return any(a.text == x.text and _same_all(a.parts, x.parts) for x in (b, flipped))
