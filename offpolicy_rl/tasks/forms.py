r"""The form of an answer: a number, a text, a list, a tuple or interval, a relation, ...

Only the outside of a formula counts here: brackets, commas, relations. The inside is a form again,
or an expression (`expressions.py`). Anything else is a text, which equals itself in other spellings
of LaTeX and nothing else: 4210_5, 6:30, \{x | x > 2\}, "listen".
"""

import dataclasses
import fractions
import re

from offpolicy_rl.tasks import latex, numerals

_MOST_PARTS = 64
_DEEPEST = 8


@dataclasses.dataclass(frozen=True)
class Form:
  """An answer, taken apart."""

  kind: str  # one of the constants below
  text: str = ""  # its spelling by `latex.normal`; of a tuple, its two brackets
  parts: tuple = ()  # Forms; of a matrix, rows of Forms
  value: fractions.Fraction | None = None  # of a number
  unit: str = ""  # of a number or expression: "%" or a unit that `_unit` knows


NUMBER, TEXT, EXPRESSION = "number", "text", "expression"
SET, TUPLE, MATRIX, UNION = "set", "tuple", "matrix", "union"
EQUATION, INEQUALITY = "equation", "inequality"  # parts: both sides; text: the sign of the latter

_OPENING, _CLOSING = ("(", "[", "\\{", "{", "\\langle"), (")", "]", "\\}", "}", "\\rangle")
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+|.)|‹[^‹›]*›|.", re.DOTALL)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_RELATIONS = ("=", *_FLIPPED, "\\in")
_VARIABLE = re.compile(r"[a-zA-Z](?:_\w)?|\\(?:theta|alpha|beta|lambda|mu|phi|omega)")
_LISTING = (",", ";", "‹and›", "‹or›", "\\wedge", "\\vee")
_UNTRUSTED = ("\\ne", "\\approx", "\\mid", "|", ":", "\\cap", "\\setminus", "\\equiv", "\\to")


# Three letters like these are a word, not a product of variables.
_LIKE_A_WORD = re.compile(r"(?![abc]{3})(?=.*[aeiouAEIOU])[a-zA-Z]{3}")
_SHORT_WORDS = {*str.split("no on yes odd one two six ten red sun mon up all any")}


def parse(text: str, depth: int = 0) -> Form:
  """The form of a formula or text."""
  text = latex.normal(re.sub(r"(?<![a-zA-Z\\])(and|or)(?![a-zA-Z])", r"\\text{\1}", text))
  text = text.removeprefix("+") if text == "+\\infty" else text
  if len(text) > numerals.LONGEST or depth > _DEEPEST or _is_words(text):
    return Form(TEXT, _as_text(text))
  tokens = _TOKEN.findall(text)
  for read in (_bracketed, _number, _matrix, _list, _relation, _union, _plus_minus, _expression):
    form = read(text, tokens, depth)
    if form is not None:
      return form
  return Form(TEXT, _as_text(text))


def _as_text(text: str) -> str:
  bare = text.translate(str.maketrans("", "", "‹›"))
  letter = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?", bare)
  if letter:
    return letter[1]
  return bare.casefold() if _is_words(text) else bare


def _is_words(text: str) -> bool:
  """Whether a text is words: ‹even›, Monday, ‹not enough information›."""
  if "\\" in text or re.search(r"[\d=<>+*/^_]", text):
    return False
  marked = re.findall(r"‹[^‹›]*›", text)
  bare = re.sub(r"‹[^‹›]*›", "", text)
  long = re.search(r"[^\W\d_]{4}", bare)
  if text.casefold() in _SHORT_WORDS or _LIKE_A_WORD.fullmatch(text):
    return True
  only = re.fullmatch(r"[\s\w().,;:'’!?-]*", bare) is not None
  joins = {"‹and›", "‹or›"}
  words = long or any(len(word) > 2 for word in marked if word not in joins)
  return only and bool(words) and not joins.intersection(marked)


def _levels(tokens: list[str]) -> list[int]:
  """Depth in brackets of each token, 0 in the outermost pair; any bracket closes any other."""
  depth, levels = 0, []
  for token in tokens:
    depth -= token in _CLOSING
    levels.append(depth)
    depth += token in _OPENING
  return levels if depth == 0 and min(levels, default=0) >= 0 else [1] * len(levels)


def _split(tokens: list[str], at: tuple[str, ...]) -> tuple[list[str], list[str]]:
  """(texts between these tokens outside all brackets, the tokens)."""
  pieces, signs = [[]], []
  for token, level in zip(tokens, _levels(tokens), strict=True):
    if level == 0 and token in at:
      signs.append(token)
      pieces.append([])
    else:
      pieces[-1].append(token)
  return ["".join(piece).strip() for piece in pieces], signs


def _has(tokens: list[str], some: tuple[str, ...]) -> bool:
  levels = zip(tokens, _levels(tokens), strict=True)
  return any(token in some and level == 0 for token, level in levels)


def _bracketed(text: str, tokens: list[str], depth: int) -> Form | None:
  if len(tokens) < 2 or tokens[0] not in _OPENING or tokens[-1] not in _CLOSING:
    return Form(SET) if text in ("\\emptyset", "\\{\\}") else None
  inside = tokens[1:-1]
  if text == "\\{\\}":
    return Form(SET)
  if 0 in _levels(tokens)[1:-1] or (1 in _levels(inside) and 0 not in _levels(inside)):
    return None
  kinds = tokens[0], tokens[-1]
  pieces, commas = _split(inside, (",", ";"))
  if kinds == ("\\{", "\\}"):
    if _has(inside, (*_UNTRUSTED, *_RELATIONS, "\\ldots")):
      return Form(TEXT, _as_text(text))
    return Form(SET, parts=tuple(parse(piece, depth + 1) for piece in pieces))
  if commas and kinds != ("{", "}"):
    if any(not piece for piece in pieces):
      return Form(TEXT, _as_text(text))
    ends = tuple(parse(piece, depth + 1) for piece in pieces)
    if kinds == ("(", ")") and [end.text for end in ends] == ["-\\infty", "\\infty"]:
      return Form(TEXT, "\\mathbb{R}")
    return Form(TUPLE, "".join(kinds), ends)
  if kinds in (("(", ")"), ("{", "}")) and not commas:
    return parse("".join(inside), depth + 1)
  return None


_LEAD_IN = re.compile(
  r"^(?:(?:the |our )?(?:final )?answer(?: is)?:?|about|approximately|exactly)\s+|^=|^\\approx",
  re.IGNORECASE,
)


def _number(text: str, *_) -> Form | None:
  text = _LEAD_IN.sub("", text)
  if re.match(r"\s*[‹a-zA-Z]", text):  # May 5
    return None
  value = numerals.phrase(text, latex=True)
  return None if value is None else Form(NUMBER, text, value=value, unit=_unit(text))


_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)


def _matrix(text: str, _tokens: list[str], depth: int) -> Form | None:
  match = _MATRIX.fullmatch(text.strip("()[]")) or _MATRIX.fullmatch(text)
  if match is None:
    return Form(TEXT, _as_text(text)) if "\\begin" in text else None
  rows = [row.split("&") for row in re.sub(r"\\\\\s*$", "", match[2]).split("\\\\")]
  if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > _MOST_PARTS:
    return Form(TEXT, _as_text(text))
  return Form(MATRIX, parts=tuple(tuple(parse(cell, depth + 1) for cell in row) for row in rows))


def _list(_text: str, tokens: list[str], depth: int) -> Form | None:
  pieces, signs = _split(tokens, _LISTING)
  pieces = [piece for piece in pieces if piece]
  if not signs or not 2 <= len(pieces) <= _MOST_PARTS:
    return None
  parts = tuple(parse(piece, depth + 1) for piece in pieces)
  names = {part.parts[0].text for part in parts if part.kind == EQUATION}
  intervals = [part.parts[1] for part in parts if part.kind == EQUATION]
  are_intervals = all(form.kind == TUPLE and len(form.parts) == 2 for form in intervals)
  if len(names) == 1 and len(parts) == len(intervals) and are_intervals:
    joined = _joined(intervals, signs)
    if joined is not None:
      return Form(EQUATION, "", (Form(TEXT, names.pop()), joined))
  return Form(SET, parts=parts)


def _joined(intervals: list[Form], signs: list[str]) -> Form | None:
  """Inequalities of one variable as one: x < 1 or x > 3; 1 < x and x < 3."""
  if set(signs) <= {"‹or›", "\\vee"}:
    return Form(UNION, parts=tuple(intervals))
  below, above = sorted(intervals, key=lambda x: x.parts[0].text != "-\\infty")[:2]
  bounds = (below.parts[0].text, above.parts[1].text) == ("-\\infty", "\\infty")
  if set(signs) <= {"‹and›", "\\wedge"} and len(intervals) == 2 and bounds:
    return Form(TUPLE, above.text[0] + below.text[1], (above.parts[0], below.parts[1]))
  return None


def is_name(form: Form) -> bool:
  r"""Whether it may name a value before "=": x, f(2), \theta, (x, y), ‹Area›; not 2x."""
  return numerals.NAME.fullmatch(form.text) is not None


def is_ordered(form: Form) -> bool:
  """Whether a list names its values: x = 1, y = 2, but not x_1 = 1, x_2 = 2."""
  if form.kind != SET or not all(part.kind == EQUATION for part in form.parts):
    return False
  return len({part.parts[0].text.partition("_")[0] for part in form.parts}) > 1


def _relation(text: str, tokens: list[str], depth: int) -> Form | None:
  (exact, *rounded), _ = _split(tokens, ("\\approx",))
  if exact and len(rounded) == 1 and rounded[0]:  # \sqrt{13} \approx 3.606
    if numerals.NAME.fullmatch(exact) and exact not in ("\\pi", "e"):
      return Form(EQUATION, "", (Form(TEXT, exact), parse(rounded[0], depth + 1)))
    return parse(exact, depth + 1)
  pieces, signs = _split(tokens, _RELATIONS)
  if not signs or not all(pieces):
    return Form(TEXT, _as_text(text)) if _has(tokens, _UNTRUSTED) and "|" not in tokens else None
  if set(signs) == {"="}:  # x = a = b is x = b
    sides = Form(TEXT, pieces[0]), parse(pieces[-1], depth + 1)
    return Form(EQUATION, text if len(signs) == 1 else "", sides)
  if signs == ["\\in"]:
    return Form(EQUATION, "", (Form(TEXT, pieces[0]), parse(pieces[1], depth + 1)))
  interval = _interval(pieces, signs, depth)
  if interval is not None:
    return interval
  if len(signs) == 1 and signs[0] in _FLIPPED:
    return Form(INEQUALITY, signs[0], tuple(parse(piece, depth + 1) for piece in pieces))
  return Form(TEXT, _as_text(text))


def _interval(pieces: list[str], signs: list[str], depth: int) -> Form | None:
  """The interval of x in x < 5, 5 > x, 1 < x <= 3 or 3 >= x > 1."""
  if len(signs) == 2 and {sign[-1] in "<e" for sign in signs} and _is_variable(pieces[1]):
    if {"<", "\\le"}.issuperset(signs):
      low, high, first, second = pieces[0], pieces[2], signs[0], signs[1]
    elif {">", "\\ge"}.issuperset(signs):
      low, high, first, second = pieces[2], pieces[0], signs[1], signs[0]
    else:
      return None
    opening, closing = "(["["e" in first], ")]"["e" in second]
    return _named(pieces[1], opening + closing, low, high, depth)
  if len(signs) != 1 or signs[0] not in _FLIPPED:
    return None
  left, right, sign = *pieces, signs[0]
  if _is_variable(right) and not _is_variable(left):
    left, right, sign = right, left, _FLIPPED[sign]
  if not _is_variable(left) or _is_variable(right):
    return None
  if sign in ("<", "\\le"):
    return _named(left, "(" + ")]"["e" in sign], "-\\infty", right, depth)
  return _named(left, "(["["e" in sign] + ")", right, "\\infty", depth)


def _is_variable(text: str) -> bool:
  return _VARIABLE.fullmatch(text) is not None


def _named(name: str, brackets: str, low: str, high: str, depth: int) -> Form:
  ends = Form(TUPLE, brackets, (parse(low, depth + 1), parse(high, depth + 1)))
  return Form(EQUATION, "", (Form(TEXT, name), ends))


def _union(_text: str, tokens: list[str], depth: int) -> Form | None:
  pieces, signs = _split(tokens, ("\\cup",))
  if not signs or not all(pieces):
    return None
  return Form(UNION, parts=tuple(parse(piece, depth + 1) for piece in pieces))


def _plus_minus(text: str, tokens: list[str], depth: int) -> Form | None:
  if tokens.count("\\pm") != 1 or "\\mp" in tokens:
    return None
  both = (text.replace("\\pm", sign).lstrip("+").strip() for sign in "+-")
  return Form(SET, parts=tuple(parse(one, depth + 1) for one in both))


_EXPRESSION = re.compile(
  r"(?>\d++(?:\.\d++)?|\.\d++|(?<![a-zA-Z])[a-zA-Z]{1,3}(?![a-zA-Z])(?:_(?:[\da-zA-Z]|\{[\da-zA-Z]+\}))?"
  r"|\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi|rho|sigma|tau|phi|omega)(?![a-zA-Z])"
  r"|\\sqrt\[(?:\d{1,2}|[a-z])\]|\\(?:frac|sqrt|times|cdot|binom|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|lfloor"
  r"|rfloor|lceil|rceil)(?![a-zA-Z])|\\log_(?:\d|[a-z]|\{\w+\})|\\log(?![a-zA-Z])|[-+*/^!{}()|\s])++"
)
# f(x) might be a product or a function; a/bc has two readings; towers of powers take for ever.
_AMBIGUOUS = re.compile(
  r"(?<![a-zA-Z\\])[fgh]\s*\(|/\s*(?:\d+|[a-zA-Z])\s*(?:[a-zA-Z({]|\\(?!times|cdot))"
  r"|\^\{[^{}]*\^|\^\{?\d{4}|\d{4,}\s*!|!\s*!|\|.*\|.*\||(?<!_)\d\s+\d"
)


_WITH_UNIT = re.compile(r"(.*?[^‹›\s])\s*((?:‹[a-zA-Z.]+›\.?(?:\^\{?-?\d\}?)?[\s/]*)+)")


def _expression(text: str, *_) -> Form | None:
  text, unit = text.lstrip("+"), ""
  measured = _WITH_UNIT.fullmatch(text)
  if measured and not numerals.CHANGES.intersection(numerals.words(measured[2])):
    text, unit = measured[1], _unit(measured[2])
  if not _EXPRESSION.fullmatch(text) or _AMBIGUOUS.search(text):
    return None
  return Form(EXPRESSION, text, unit=unit)


_UNIT_NAMES = str.split(  # a unit and its other names
  "cm centimeter centimetre; mm millimeter millimetre; m meter metre; km kilometer kilometre; in "
  "inch inche; ft foot feet; yd yard; mi mile; g gram; kg kilogram; lb pound; oz ounce; s second "
  "sec; min minute; h hour hr; day; week; month; year yr; dollar buck; cent; am a.m; pm p.m; l "
  "liter litre; ml milliliter; mph; degree deg; radian rad",
  ";",
)
_UNITS = {name: names.split()[0] for names in _UNIT_NAMES for name in names.split()}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_UNIT_WORD = re.compile(r"‹?([a-zA-Z]+(?:\.[a-zA-Z])?)›?\.?(?:\^\{?(-?\d)\}?)?")


def _unit(text: str) -> str:
  if "%" in text or "‹percent›" in text:
    return "%"
  first = re.search(r"‹|(?<![\\a-zA-Z])[a-zA-Z]{2,}", text)
  units, power = [], 1
  for word, exponent in _UNIT_WORD.findall(text[first.start() :]) if first else ():
    word = word.casefold()
    name = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    if word in _POWERS:
      power = _POWERS[word]
    elif name is None:
      return ""
    else:
      power = int(exponent or power)
      units.append(name if power == 1 else f"{name}^{power}")
      power = 1
  return " ".join(units)


def flipped(inequality: Form) -> Form:
  """a < b as b > a."""
  return Form(INEQUALITY, _FLIPPED[inequality.text], inequality.parts[::-1])


def canonical(form: Form) -> str:
  r"""One text for answers that `symbolic.same` accepts as equal by their form.

  1, 2 and \{2, 1\} are such, or x < 3 and (-\infty, 3). Expressions stay as written.
  """
  if form.kind == NUMBER:
    return str(form.value)
  if form.kind == EQUATION and is_name(form.parts[0]):
    return canonical(form.parts[1])
  if form.kind in (SET, UNION):
    ordered = is_ordered(form)
    name = lambda part: part.parts[0].text + "=" if ordered else ""
    parts = sorted({name(part) + canonical(part) for part in form.parts})
    return "\\cup".join(parts) if form.kind == UNION else "\\{" + ",".join(parts) + "\\}"
  if form.kind == TUPLE:
    opening = next(sign for sign in _OPENING if form.text.startswith(sign))
    inside = ",".join(map(canonical, form.parts))
    return opening + inside + form.text[len(opening) :]
  if form.kind == MATRIX:
    return ";".join(",".join(map(canonical, row)) for row in form.parts)
  return form.text or ",".join(map(canonical, form.parts))
