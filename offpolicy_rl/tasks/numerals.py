r"""Numbers as people and models write them. A text is one number as a whole, or none.

Read: signs, decimals, thousands (1,680; 9\,500; 9{,}500), 1.5e3, 1.5 \times 10^3, 3/4, \frac{3}{4},
1\frac12, ½, 0.\overline{3}, currency, percent and degrees (ignored: 84% is 84), units and words
("5 apples", "5\text{ cm}^2", "the answer is 5", "5 million"), "x = 5", "2 + 3 = 5", (5).
Not read: any other mathematics, such as 2\sqrt{2}, x^2, 2\pi, 5!, 4210_5, 6:30, (2, 3), 5-6 and
"5 or 6"; nor texts too long to be one number.
"""

import fractions
import re

from offpolicy_rl.tasks import latex as latex_lib

LONGEST = 300  # characters of a text that is read, which bounds the time

_THIN = latex_lib.THIN


def _plain_number(name: str) -> str:
  """Pattern of a decimal; `name` is that of a group in it."""
  grouped = rf"\d{{1,3}}(?P<{name}>[,' {_THIN}])\d{{3}}(?:(?P={name})\d{{3}})*(?!\d)"
  return rf"(?:(?:{grouped}|\d+)(?:\.\d*\\overline\{{\d+\}}|\.\d+)?|\.\d+)"


_SIGNED = r"(?:[-+]\s*)?"


def _fraction(name: str) -> str:
  r"""Pattern for \frac{a}{b} and \frac12; `name` begins the names of its groups."""
  part = lambda i: (
    rf"(?:\{{\s*(?P<{name}{i}>{_SIGNED}{_plain_number(f'{name}{i}s')})\s*\}}"
    rf"|(?P<{name}{i}d>\d))\s*"
  )
  return rf"\\frac\s*{part(1)}{part(2)}"


_TIMES = r"\s*(?:\\times|\\cdot|\*|[xX])\s*"
_AMOUNT = re.compile(
  rf"(?P<fraction>{_fraction('f')})"
  rf"|(?P<whole>\d+)(?:\s*(?P<mixed>{_fraction('m')})|\s+(?P<above>\d+)\s*/\s*(?P<below>\d+))"
  rf"|(?P<number>{_plain_number('n')})"
  rf"(?:[eE](?P<e>[-+]?\d+)|{_TIMES}10\s*\^\s*(?:\{{\s*(?P<t1>{_SIGNED}\d+)\s*\}}|(?P<t2>-?\d+))"
  rf"|\s*/\s*(?P<under>{_SIGNED}{_plain_number('u')}))?"
)
_HIGHEST_EXPONENT = 400

_CURRENCY = r"(?:[$¤€£¥₹₩₽₿¢]|US\$|Rs\.?|USD|EUR|GBP)"
_OPENING = re.compile(rf"(?:[-+(]|{_CURRENCY}|\s)*")
_FIRST = re.compile(r"\d|\.\d|\\frac")
_RELATION = re.compile(r"=|\\approx(?![a-zA-Z])")
_WORD = r"‹[^‹›]*›|[^\W\d_]+(?:['’.-](?=[^\W\d_])[^\W\d_]+)*"
_AROUND_NUMBERS = re.compile(
  rf"\s+|(?P<word>{_WORD})(?P<power>\^(?:-?\d|\{{-?\d\}}))?"
  r"|(?P<degrees>\^\s*\{?\s*\\circ\s*\}?\s*(?:[CFK](?![a-zA-Z]))?)|\\degree(?:s)?"
  rf"|%|{_CURRENCY}|/(?=\s*(?:‹|[^\W\d_]))|\\cdot(?=\s*‹)|[-](?=[^\W\d_‹])|\.(?!\.)|[,;:?()\"“”*`!]"
)


def _set(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Words that change the value of the number beside them, or say that it is not the answer; some only
# before it: "5 times" is five times.
CHANGES_WHAT_IT_FOLLOWS = _set(
  "minus plus over half halves squared cubed factorial root roots pi log ln sin cos tan infinity "
  "infinite mod modulo choose power base exceeds third thirds fourth fourths fifth fifths sixth "
  "sixths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths "
  "lakh crore"
)
CHANGES = CHANGES_WHAT_IT_FOLLOWS | _set(
  "negative times or not no none never neither nor than least most under below above between "
  "double twice triple sqrt step case equation"
)
_NUMBER_WORDS = _set(
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
MULTIPLES = {
  "hundred": 10**2,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}
_SHORT_WORDS = _set(
  "km cm mm nm dm kg mg lb lbs oz ft in yd mi hr hrs min mins sec secs ms mph kph kmh ml cl kw kwh "
  "mb gb tb hz khz mhz st nd rd th am pm is of to at by an as it on be egg eggs sq cu deg rad pct "
  "bit bits the she her his for and each"
)
# 5万 is 50000, 5倍 five times, 5的 of 5, 负5 minus 5, 不是5 not 5.
_IDEOGRAPHS = re.compile(latex_lib.IDEOGRAPH)
_CHANGES_BEFORE_IT = re.compile(r"^(?:[万萬亿億兆千百十半倍点割多余만억천백조]|分之|的)")
_CHANGES_BEHIND_IT = re.compile(r"[不非负負]|マイナス|마이너스")
_LETTER_UNITS = frozenset("mgshLl")
_ARTICLES = frozenset("aAI")


def read(text: str, *, latex: bool = False) -> fractions.Fraction | None:
  """The number that the text is; None if it is none, or something else is beside it.

  `latex`: the text comes from a formula, so that a letter is a variable and no unit.
  """
  if len(text) > LONGEST:
    return None
  text = latex_lib.unwrapped(latex_lib.plain(text))
  latex = latex or "\\" in text
  *left, last = _RELATION.split(text)
  value = phrase(last, latex=latex)
  if value is None or not all(_may_equal(part, value, latex) for part in left):
    return None
  return value


def phrase(text: str, *, latex: bool) -> fractions.Fraction | None:
  """A number with only words, units and currency around it."""
  first = _FIRST.search(text)
  if first is None:
    return None
  opening = _opening(text, first.start())
  before, sign = text[: opening[0]], opening[1]
  closing = sign.count("(")
  amount = _AMOUNT.match(text, first.start())
  if amount is None or not _only_words(before, latex=latex) or not _may_open(before, sign):
    return None
  behind = text[amount.end() :]
  for _ in range(closing):
    behind = behind.lstrip()
    if not behind.startswith(")"):
      return None
    behind = behind[1:]
  value = _value(amount)
  if value is None or behind.lstrip().startswith("!"):  # a factorial
    return None
  if not _only_words(behind, latex=latex, behind=True):
    return None
  value *= (-1) ** sign.count("-")
  return value * multiple(words(behind))


def _opening(text: str, first: int) -> tuple[int, str]:
  """(start of the signs, parentheses and currency before the number, these characters)."""
  for start in range(first + 1):
    if _OPENING.fullmatch(text, start, first):
      return start, text[start:first]
  return first, ""


def _may_open(before: str, sign: str) -> bool:
  """Whether this may precede a number: -$5, $-5, -(3), but no hyphen of a word, no dash."""
  bare = re.sub(rf"\s|{_CURRENCY}", "", sign)
  if not re.fullmatch(r"(?:[-+]?\()*[-+]?", bare) or len(re.findall(_CURRENCY, sign)) > 1:
    return False
  dash = re.match(r"\s*-\s", sign) is not None
  glued = sign.startswith("-")
  words_before = before.rstrip()
  if before[-1:].isalpha() and sign[:1] in ("", "-", "+"):  # x2, x-2
    return False
  return not (words_before and not words_before.endswith((":", ",")) and (dash or glued))


def words(text: str) -> list[str]:
  """The words of a text in lower case."""
  return [word.strip("‹›").casefold() for word in re.findall(_WORD, text)]


def multiple(following: list[str]) -> int:
  """A million, for the words behind "5" in "5 million people"; else 1."""
  return MULTIPLES.get(following[0], 1) if following else 1


def is_word(word: str, *, latex: bool, glued: bool, behind: bool) -> bool:
  """Whether letters beside a number are a word or a unit, not variables.

  `glued`: without a space between; `behind`: they follow the number.
  """
  if _IDEOGRAPHS.search(word):
    return not (_CHANGES_BEFORE_IT if behind else _CHANGES_BEHIND_IT).search(word.strip("‹›"))
  if word.startswith("‹"):
    return True
  if len(word) == 1:
    return not latex and word in (_LETTER_UNITS if behind else _ARTICLES)
  if not (glued or latex):
    return True
  short = len(word) == 3 and word[1] in "aeiouAEIOU"
  return len(word) > 3 or short or word.casefold() in _SHORT_WORDS


def _only_words(text: str, *, latex: bool, behind: bool = False) -> bool:
  if text.count("(") != text.count(")"):
    return False
  at, lowered = 0, []
  while at < len(text):
    piece = _AROUND_NUMBERS.match(text, at)
    if piece is None or (piece["power"] and not behind):
      return False
    if piece["word"]:
      glued = behind and at == 0
      if not is_word(piece["word"], latex=latex, glued=glued, behind=behind):
        return False
      lowered.extend(piece["word"].strip("‹›").casefold().split("-"))
    at = piece.end()
  multiples = [i for i, word in enumerate(lowered) if word in MULTIPLES]
  changes = (CHANGES | _NUMBER_WORDS) - ({"times"} if behind else set())
  return not changes.intersection(lowered) and multiples in ([], [0] if behind else [])


def _exact(text: str) -> fractions.Fraction:
  text = re.sub(r"[\s,'" + _THIN + "]", "", text)
  text, _, repeated = text.partition("\\overline{")
  value = fractions.Fraction(text + "0" if text.endswith(".") else text)
  repeated = repeated.rstrip("}")
  if not repeated:
    return value
  shift = 10 ** len(text.partition(".")[2])
  return value + fractions.Fraction(int(repeated), (10 ** len(repeated) - 1) * shift)


def _value(amount: re.Match) -> fractions.Fraction | None:
  """The value of a match of `_AMOUNT`; None for division by 0 and for strange mixed numbers."""
  if amount["fraction"]:
    return _quotient(amount["fraction"])
  if amount["whole"]:
    part = _quotient(amount["mixed"] or f"{amount['above']}/{amount['below']}")
    return None if part is None or not 0 < part < 1 else int(amount["whole"]) + part
  value = _exact(amount["number"])
  exponent = re.sub(r"\s", "", amount["e"] or amount["t1"] or amount["t2"] or "0")
  if len(exponent) > 4 or abs(int(exponent)) > _HIGHEST_EXPONENT:
    return None
  value *= fractions.Fraction(10) ** int(exponent)
  under = _exact(amount["under"]) if amount["under"] else 1
  return value / under if under else None


_OF_A_FRACTION = re.compile(_fraction("q"))


def _quotient(text: str) -> fractions.Fraction | None:
  match = _OF_A_FRACTION.fullmatch(text.strip())
  if match is None:
    above, below = text.split("/")
  else:
    above, below = match["q1"] or match["q1d"], match["q2"] or match["q2d"]
  below = _exact(below)
  return _exact(above) / below if below else None


NAME = re.compile(
  r"(?:\s|‹[^‹›]*›|[^\W\d_]++|'|\\(?:angle|triangle|overline|vec|hat|bar|sin|cos|tan|log|ln|"
  r"alpha|beta|gamma|delta|epsilon|theta|lambda|mu|pi|rho|sigma|tau|phi|omega|Delta|Omega|Phi|"
  r"prime|circ|measuredangle)(?![a-zA-Z])|_(?:\w|\{[\w\s,]*\})|\{[A-Za-z]+\}|\([^()=<>]{0,40}\)"
  r"|\[[A-Z]+\]|[:.,]|\^(?:'|\\prime|\{\\prime\}))++"
)
_ARITHMETIC = re.compile(
  rf"(?:[\d\s.,+*/()^%{{}}{_THIN}-]|{_CURRENCY}|\\(?:times|cdot|div|frac)(?![a-zA-Z])|(?<=\s)[xX](?=\s)"
  r"|÷|‹[^‹›]*›|[^\W\d_]{2,}+)++"
)


def _may_equal(left: str, value: fractions.Fraction, latex: bool) -> bool:
  """Whether `left` in `left = value` is a name for it, computes or repeats it: x, 2+3, not 3x."""
  left = latex_lib.unwrapped(left)
  if not left or NAME.fullmatch(left):
    return True
  same = phrase(left, latex=latex)
  if same is not None:
    return same == value or "/" in left or "frac" in left
  return _ARITHMETIC.fullmatch(left) is not None
