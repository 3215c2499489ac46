r"""Expressions with variables, 2\sqrt{3} or (x+1)^2: equal when their values are.

The package math-verify reads the LaTeX; values at a few points are compared to many digits. The
package's own comparison accepts too much: 6.63e-34 and 1.6e-19, whose first six decimals agree, or
formulas of which it has dropped a part.
"""

import functools
import hashlib
import re
from typing import Any, cast

import sympy
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.math_normalization import NormalizationConfig

_DIGITS = 250
_CLOSE = sympy.Float("1e-200", _DIGITS)
_ZERO = sympy.Float("1e-240", _DIGITS)  # larger than sympy's remainders of a 0
_MOST_BITS = 100_000  # of a number that is written down
_NOTHING = NormalizationConfig(
  basic_latex=False, units=False, malformed_operators=False, nits=False, boxed="none"
)
_AS_WRITTEN = latex2sympy2.ConversionConfig(
  interpret_as_mixed_fractions=False, interpret_contains_as_eq=False, lowercase_symbols=False
)
# 2(3) would be read as a mixed number, )( and )x at random.
_UNSEEN_PRODUCT = re.compile(r"[\d)}!]\s*(?=\()|\)\s*(?=[\da-zA-Z]|\\(?!times|cdot|rfloor|rceil))")
_POSITIVE, _SIGNED = (1, 2, 3), (4,)  # points, by the sign of the variables there


class Unreadable(ValueError):
  """The package does not understand an expression, or not all of it."""


def equal(text: str, other: str) -> bool:
  """Whether two expressions have the same values; Unreadable if one is not understood."""
  one, two = read(text), read(other)
  if not all(_close(_at(one, point), _at(two, point)) for point in _POSITIVE):
    return False
  values = [(_at(one, point), _at(two, point)) for point in _SIGNED]
  real = [pair for pair in values if all(value.is_real for value in pair)]
  return all(_close(*pair) for pair in real)  # sqrt(x^2) is not x


def proportional(text: str, other: str) -> bool:
  """Whether one expression is a nonzero multiple of the other, so that both vanish together."""
  one, two = read(text), read(other)
  points = (*_POSITIVE, *_SIGNED)
  values = [(_at(one, point), _at(two, point)) for point in points]
  if any(abs(a) < _CLOSE or abs(b) < _CLOSE for a, b in values) or not one.free_symbols:
    return False
  ratio = values[0][0] / values[0][1]
  return all(_close(a / b, ratio) for a, b in values)


@functools.lru_cache(512)
def read(text: str) -> sympy.Expr:
  """A LaTeX expression in `latex.normal` form -> sympy."""
  written = re.sub(r"(\d*)\.(\d+)", _as_fraction, text)
  written = _UNSEEN_PRODUCT.sub(r"\g<0>\\cdot ", written)
  try:
    expression = latex2sympy2.latex2sympy(
      written, normalization_config=_NOTHING, conversion_config=_AS_WRITTEN
    )
  except Exception as error:  # of its parser, of sympy, ...
    raise Unreadable(f"{text!r:.60}: {error!s:.100}") from None
  if not isinstance(expression, sympy.Expr) or expression.atoms(sympy.core.function.AppliedUndef):
    raise Unreadable(f"{text!r:.60}: read as {type(expression).__name__}")
  _check_names(text, expression)
  return expression.subs(sympy.Symbol("i"), sympy.I)


def _as_fraction(number: re.Match) -> str:
  return rf"\frac{{{int((number[1] or '0') + number[2])}}}{{{10 ** len(number[2])}}}"


def _check_names(text: str, expression: sympy.Expr) -> None:
  letters = set("".join(re.sub(r"\\[a-zA-Z]+|_\{?\w+\}?", "", text).split()))
  letters = {letter for letter in letters if letter.isalpha()} - {"e"}
  names = {str(symbol).split("_")[0] for symbol in expression.free_symbols}
  if letters - names or len(expression.free_symbols) > 12:
    raise Unreadable(f"{text!r:.60}: read as {expression!s:.60}")


def _at(expression: sympy.Expr, point: int) -> sympy.Expr:
  """The value at a point, at which each variable has a value by its name; exact if rational."""
  values: dict[Any, Any] = {
    symbol: _value(str(symbol), point) for symbol in expression.free_symbols
  }
  value = expression.subs(values)
  exact = _rational(value)
  value = value.evalf(_DIGITS) if exact is None else exact
  if not value.is_number or value.has(sympy.nan, sympy.oo, sympy.zoo):
    raise Unreadable(f"{expression!s:.60}: its value is {value!s:.60}")
  return value


def _value(name: str, point: int) -> sympy.Rational:
  digest = int.from_bytes(hashlib.sha256(f"{point} {name}".encode()).digest()[:6], "big")
  size = sympy.Rational(1, 2) + sympy.Rational(2 * digest, 256**6)
  return -size if point in _SIGNED else size


def _rational(expression: sympy.Expr) -> sympy.Rational | None:
  """The exact value; None if it is not rational, or too large to write down."""
  if isinstance(expression, sympy.Rational):
    return expression
  if not isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow):
    return None
  values = [value for value in map(_rational, expression.args) if value is not None]
  if len(values) < len(expression.args):
    return None
  if not isinstance(expression, sympy.Pow):
    sum_or_product = sympy.Add if isinstance(expression, sympy.Add) else sympy.Mul
    return cast(sympy.Rational, sum_or_product(*values))
  base, power = values
  bits = base.p.bit_length() + base.q.bit_length()
  if power.q != 1 or bits * abs(power.p) > _MOST_BITS or (base == 0 and power < 0):
    return None
  return cast(sympy.Rational, base**power)


def _close(a: sympy.Expr, b: sympy.Expr) -> bool:
  if a.is_Rational and b.is_Rational:  # 2^{200} is not 2^{200} - 1
    return a == b
  return bool(abs(a - b) <= _CLOSE * (abs(a) + abs(b))) or bool(abs(a) + abs(b) < _ZERO)
