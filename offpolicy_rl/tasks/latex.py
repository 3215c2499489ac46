r"""One spelling for what LaTeX and Unicode spell in many ways: 9,500 and 9\,\!500, \leq and ≤."""

import re
import unicodedata

THIN = "\u2009"  # stands for all spaces that LaTeX and typographers put into numbers

_LETTERS = {
  **dict.fromkeys("−–‐‑﹣－", "-"),
  **dict.fromkeys("⁄∕÷", "/"),
  **dict.fromkeys("∣｜", "|"),
  **dict.fromkeys("\u00a0\u202f\u2007\u2008\u2005", THIN),
  **dict.fromkeys("\u00ad\u200b\u2060\ufeff", ""),
  **dict(zip("。：、；", (". ", ": ", ", ", "; "), strict=True)),
  **dict(zip("＋＝（），．％＄′", "+=(),.%$'", strict=True)),
  "ℝ": r"\mathbb{R}",
  "ℤ": r"\mathbb{Z}",
  "°": r"^\circ ",
}
_COMMANDS = str.split(
  "× times · cdot ⋅ cdot √ sqrt π pi ∞ infty ≈ approx … ldots ≤ le ≥ ge ≠ ne ∅ emptyset ∪ cup ∩ "
  "cap ∈ in → to ± pm θ theta α alpha β beta γ gamma λ lambda μ mu ω omega φ phi ∠ angle △ "
  "triangle"
)
_LETTERS |= {c: f"\\{name} " for c, name in zip(_COMMANDS[::2], _COMMANDS[1::2], strict=True)}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
IDEOGRAPH = "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # and kana, and syllables of Korean
# Chinese and Japanese put no space between words and numbers.
_BESIDE_IDEOGRAPHS = re.compile(rf"(?<={IDEOGRAPH})(?=[\d$¥￥\\.-])|(?<=\d)(?={IDEOGRAPH})")


def _ascii(text: str) -> str:
  text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
  text = re.sub("[₀-₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
  text = _BESIDE_IDEOGRAPHS.sub(" ", text)
  return "".join(map(_ascii_character, text))


def _ascii_character(character: str) -> str:
  if character in _LETTERS:
    return _LETTERS[character]
  if unicodedata.category(character) == "Nd":
    return str(unicodedata.decimal(character))
  parts = unicodedata.decomposition(character).split()
  if parts[:1] == ["<fraction>"] and "2044" in parts:
    above, below = "".join(chr(int(code, 16)) for code in parts[1:]).split("\u2044")
    return f"\\frac{{{above}}}{{{below}}}" if above and below else character
  return character


_TEXT = re.compile(
  r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|underline|math(?:rm|bf|it|sf|tt)|mbox|hbox|emph|operatorname\*?|"
  r"bold(?:symbol)?|bf|rm)\s*\{([^{}]*)\}"
)
_DOUBLE_BRACES = re.compile(r"\{\{([^{}]*)\}\}")
_OVER = re.compile(r"\{([^{}]+)\\over(?![a-zA-Z])([^{}]+)\}|^([^{}]+)\\over(?![a-zA-Z])([^{}]+)$")
# 3\mathrm{i}, 2\mathbf{v}: variables, no units.
_UPRIGHT = (
  r"\\(?:(?:text|math)(?:rm|it|normal)?\{\s*(?=[eijkxyzn]\s*\})"
  r"|(?:math(?:bf|sf|tt)|boldsymbol)\{\s*)([a-zA-Z])\s*\}"
)
_SPACING = (
  (
    re.compile(
      r"\\(?:text)?color\{\w+\}|\\(?:bf|rm|it|large|Large|LARGE|huge|Huge|small)(?![a-zA-Z{])"
    ),
    "",
  ),
  (re.compile(r"\^\{\s*(?:\\(?:text|mathrm)\{\s*)?(?:st|nd|rd|th)\s*\}{1,2}"), ""),  # 5^{th}
  (re.compile(r"(?<![a-zA-Z])([ap])\.\s?m\.?(?![a-zA-Z])"), r"\1m"),
  (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])|\\!"), ""),
  (re.compile(r"\{,\}"), ","),
  (re.compile(r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|thinspace|enspace|space)(?![a-zA-Z])"), THIN),
  (re.compile(r"\\[dtcs]frac(?![a-zA-Z])|\\nicefrac(?![a-zA-Z])"), r"\\frac"),
  (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
  (re.compile(r"(?<![a-zA-Z])" + _UPRIGHT), r"\1"),
  (re.compile(_UPRIGHT), r" \1"),
  (re.compile(r"\\\$"), "¤"),  # money; a bare $ may begin a formula
  (re.compile(r"\\([%#&])"), r"\1"),
  (re.compile(r"\\(?:mathdollar|textdollar)"), "¤"),
  (re.compile(r"\\(?:simeq|cong|doteq)(?![a-zA-Z])"), r"\\approx"),
)


def plain(text: str) -> str:
  r"""The text with one spelling for signs and commands that have many.

  Words of \text{...} stand between ‹ and ›, so that ‹m› is a unit and m a variable.
  """
  text = text.replace("‹", " ").replace("›", " ")
  if not text.isascii():
    text = _ascii(text)
  for pattern, by in _SPACING:
    text = pattern.sub(by, text)
  text = _DOUBLE_BRACES.sub(r"{\1}", text)
  text = _OVER.sub(lambda m: rf"\frac{{{m[1] or m[3]}}}{{{m[2] or m[4]}}}", text)
  for _ in range(3):  # \text inside \text is rare, deeper than that unheard of
    text = _TEXT.sub(lambda m: " " + re.sub(r"[^\W\d_]+", r"‹\g<0>›", m[1]), text)
  return text.replace("‹‹", "‹").replace("››", "›")


_WRAPPERS = (
  *(("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__")),
  *(("*", "*"), ("_", "_"), ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("{", "}")),
)


def unwrapped(text: str) -> str:
  """The text without signs around formulas and emphasis, and without a full stop at its end."""
  while True:
    before = text
    text = re.sub(r"(?<![.])[.,;:]$", "", text.strip()).strip()
    for opening, closing in _WRAPPERS:
      inner = text[len(opening) : len(text) - len(closing)]
      wraps = len(text) > len(opening + closing) and text.startswith(opening)
      if wraps and text.endswith(closing) and opening not in inner and closing not in inner:
        text = inner
    text = text.removesuffix("**").removeprefix("**")
    if text == before:
      return text


_SAME = str.split(  # a command, and the one that stands for it
  "leq le leqslant le geq ge geqslant ge neq ne varnothing emptyset dots ldots cdots ldots "
  "rightarrow to longrightarrow to infin infty varphi phi varepsilon epsilon land wedge lor vee"
)
_SIGNS = str.split(  # a command, and the sign that it is
  "lt < gt > lbrace \\{ rbrace \\} mid | vert | lvert | rvert | colon : ast * lbrack [ rbrack ] "
  "lparen ( rparen ) div /"
)
_SYNONYMS = (
  {name: f"\\{same} " for name, same in zip(_SAME[::2], _SAME[1::2], strict=True)}
  | dict(zip(_SIGNS[::2], _SIGNS[1::2], strict=True))
  | {"R": "\\mathbb{R}"}
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\d|[a-zA-Z])(?![a-zA-Z])")
_ONE_IN_BRACES = re.compile(r"(?<=[_^])\{\s*(\w)\s*\}")


def normal(text: str) -> str:
  r"""One spelling for equal answers: spaces, \frac12, synonyms.

  Words of \text{...} stand between ‹ and ›.
  """
  text = unwrapped(plain(text))
  text = _COMMAND.sub(lambda m: _SYNONYMS.get(m[1], m[0]), text)
  braced = lambda part: "{" + part.strip("{} ") + "}"
  text = _SHORT_FRACTION.sub(lambda m: "\\frac" + braced(m[1]) + braced(m[2]), text)
  text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
  text = _ONE_IN_BRACES.sub(r"\1", text)
  text = re.sub(r"\s+", " ", text.replace(THIN, " ").replace("¤", "$"))
  text = re.sub(r"(?<![\w›]) | (?![\w‹])", "", text)
  return re.sub(r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1", text)  # \le 3
