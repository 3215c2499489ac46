r"""Finds the answer in a completion: the number or text that it commits to.

An answer may be marked by <answer>...</answer>, \boxed{...} or "#### ...": the first of these kinds
that occurs, and of that the last that is not empty. A thought before it does not count. Pure
functions of text, linear in its length.
"""

import fractions
import re

from offpolicy_rl.tasks import latex, numerals, thoughts

_OPEN, _CLOSE = "<answer>", "</answer>"
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,9}(\{|[^\s{}\\])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"(?<!#)#{4,}+\s*+([^\s#][^\n]*)")
# Between boxes that hold one answer together: $x = \boxed{1}$ and $y = \boxed{2}$.
_BETWEEN = re.compile(
  r"(?:[ \t$~,;]|\\[,;: !]|\\q?quad|\\text\{[ ,]*(?:and|or)[ ,]*\}|\\(?:and|or)\b|(?:and|or)\b"
  r"|[a-zA-Z]\s*=)*"
)
_LONGEST_BETWEEN = 60


def last_tagged(text: str) -> str | None:
  """The text in the last <answer>...</answer> that is not empty; "" if all are empty."""
  end, empty = len(text), False
  while (end := text.rfind(_CLOSE, 0, end)) >= 0:
    start = text.rfind(_OPEN, 0, end)
    if start < 0:
      break
    inside = text[start + len(_OPEN) : end].strip()
    if inside:
      return inside
    empty, end = True, start
  return "" if empty else None


def boxes(text: str) -> list[str]:
  r"""The answer in \boxed{...}: the last complete box, with those that it is listed with.

  Boxes before it belong to it if only "and", "or", commas, or the name of a variable stand between.
  Empty boxes don't count. Braces inside are matched.
  """
  contents, begin = [], len(text)
  for start, inside, end in _boxes_backwards(text):
    is_near = begin - end <= _LONGEST_BETWEEN
    if contents and not (is_near and _BETWEEN.fullmatch(text, end, begin)):
      break
    if inside:
      contents.append(inside)
      begin = start
  return list(dict.fromkeys(reversed(contents)))


def _boxes_backwards(text: str):
  """(start, content, end) of each complete box, the last first; of nested ones the innermost."""
  limit = len(text)
  for box in reversed(list(_BOX.finditer(text))):
    if box.end() > limit:
      continue
    if box[1] != "{":
      yield box.start(), box[1], box.end()
      limit = box.start()
      continue
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), limit):
      depth += {"{": 1, "}": -1}.get(brace[0], 0)
      if depth == 0:
        yield box.start(), text[box.end() : brace.start()].strip(), brace.end()
        break
    limit = box.start()  # text behind it need not be read again, even if it is never closed


def last_boxed(text: str) -> str | None:
  r"""`boxes` joined by commas; None without a complete \boxed{...}."""
  contents = boxes(text)
  if contents:
    return ", ".join(contents)
  return "" if next(_boxes_backwards(text), None) else None


# Lines that begin with "####" and are headings, where anything follows them.
_HEADING = re.compile(
  r"\W*(?:(?:step|solution|part|case|method|example|problem|question|approach|option)\b.*"
  r"|(?:the )?(?:final )?(?:answer|result|conclusion|explanation|verification|check|summary)\W*)",
  re.IGNORECASE,
)


def _after_hashes(text: str) -> str | None:
  lines = [(match.end(), match[1].strip()) for match in _HASHES.finditer(text)]
  last = len(text.rstrip())
  answers = [line for end, line in lines if end >= last or not _HEADING.fullmatch(line)]
  if answers:
    return answers[-1]
  return "" if "####" in text and not lines else None


def answer_text(completion: str) -> str | None:
  """The answer as text: all behind the thought, or its tagged part; None in an open thought."""
  text = thoughts.removed(completion)
  if text is None:
    return None
  tagged = last_tagged(text)
  return (text if tagged is None else tagged).strip()


def marked_answer(text: str) -> str | None:
  """The part of a completion that is marked as its answer; None without a mark, "" if marks are
  empty.

  In <answer> tags, the box or the "####" in them.
  """
  mark = _mark(text)
  return mark and mark[0]


def _mark(text: str) -> tuple[str, bool] | None:  # (marked text, whether by a box)
  empty = False
  for kind in (last_tagged, last_boxed, _after_hashes):
    answer = kind(text)
    if answer and kind is last_tagged:
      inner = _mark(answer)
      return inner if inner and inner[0] else (answer, False)
    if answer and kind is last_boxed:
      return _in_its_formula(text), True
    if answer:
      return answer, False
    empty = empty or answer is not None
  return ("", False) if empty else None


# A sign before a box, neither dash nor bullet: $-\\boxed{5}$, = - \\boxed{5}.
_NEGATIVE = re.compile(r"(?:(?:^|[^\w)\]}])[-−]|[=({\[$,:<>] {0,9}[-−] {1,9})$")
# An operator before it, or mathematics that goes on behind it to the end of the formula.
_OPERATOR = re.compile(
  r"(?:[\w)\]}] {0,9}\*|[/^+×÷]|[\w)\]}][-−]|\d\s{1,9}[-−]|\\(?:times|cdot|div|pm|mp|sqrt))\s{0,9}$"
)
_GOES_ON = re.compile(
  r"(?:\s|\\[,;:! ])*(?:\^(?!\s*\{?\s*\\circ)|[π×÷]|[-−+*/]\s*[\d\\({.]"
  r"|\\(?:times|cdot|div|pm|mp|pi|sqrt|[dt]?frac|over)(?![a-zA-Z])).*?(?=\$|\\[)\]]|\n|$)"
)
_BESIDE = 200  # characters of a formula that are looked at on each side of a box


def _in_its_formula(text: str) -> str:
  r"""The boxed answer with the signs and factors outside of the box: -\boxed{5}, \boxed{5}\pi."""
  contents = boxes(text)
  if len(contents) > 1:
    return ", ".join(contents)
  start, inside, end = next(box for box in _boxes_backwards(text) if box[1])
  before, behind = text[max(0, start - _BESIDE) : start], text[end : end + _BESIDE]
  goes_on = _GOES_ON.match(behind)
  if _OPERATOR.search(before):
    return f"... {before[-1:]} {inside}"  # where the formula begins is not known
  if goes_on:
    inside = f"{inside if inside.isdigit() else f'({inside})'}{goes_on[0]}"
  return f"-({inside})" if _NEGATIVE.search(before) else inside


def number(text: str) -> fractions.Fraction | None:
  """The number that a completion answers with; None if there is none.

  A marked answer must be one number (`numerals.read`): listing candidates earns nothing. Without a
  mark it is the last number of the text, unless that is part of an expression or of a word.
  """
  said = thoughts.removed(text)
  if said is None:
    return None
  mark = _mark(said)
  return _last_number(said) if mark is None else numerals.read(mark[0], latex=mark[1])


_DIGIT = r"(?:\d|[\u00bc-\u00be\u2150-\u215f])"
_LAST_DIGIT = re.compile(r".*" + _DIGIT, re.DOTALL)
_WINDOW = 200  # characters before and behind the last digit that are looked at
_TAG = re.compile(r"</?[a-zA-Z_]{1,20}/?>")
_TOKEN = re.compile(
  r"(?P<word>‹[^‹›]*›|(?<![^\W\d_])[^\W\d_]+(?:['’][^\W\d_]+)*)"
  r"|(?P<command>\\[a-zA-Z]+)|(?P<digits>\d+)"
  r"|(?P<stop>[.,;:?](?=\s|$|[\"'”*)])|[-=]+>|[=\n\"“”#—`]|\\[\\()\[\]]|(?<![\d)])\*\*|\*\*(?![\d(]))"
  r"|(?P<other>.)",
  re.DOTALL,
)
_RELATIONS = {
  f"\\{name}" for name in str.split("approx boxed fbox Rightarrow implies therefore to")
}
_BULLET = re.compile(r"\s*[-+]\s")
_ENUMERATED = re.compile(r"\s*\d+[.)]\s+\S")
_TABLE = re.compile(r"\s*\|.*\|.*\|\s*")  # a row of it: | total | 5 |
_AND_A_HALF = re.compile(r"\s*and\s+(?:a|one)\s+(?:half|quarter|third|fifth|tenth)\b")


def _last_number(text: str) -> fractions.Fraction | None:
  """The last number of a text without marks, if only words are beside it.

  Reads the expression around the last digits, up to words, "=" or the end of the clause on both
  sides.
  """
  end = _LAST_DIGIT.match(text)
  if end is None:
    return None
  start = max(0, end.end() - _WINDOW)
  line = text[start : end.end() + _WINDOW]
  at = end.end() - start
  begin = line.rfind("\n", 0, at) + 1
  cut = begin == 0 and start > 0  # the line goes on to the left
  until = line.find("\n", at)
  line = latex.plain(_TAG.sub("\n", line[begin : None if until < 0 else until]))
  if _TABLE.fullmatch(line):
    line = line.replace("|", "\n")
  tokens = list(_TOKEN.finditer(line))
  places = [i for i, token in enumerate(tokens) if token["digits"] and not _in_a_word(tokens, i)]
  if not places or (not cut and _ENUMERATED.match(line) and places[-1] < 3):
    return None
  return _expression(line, tokens, places[-1], cut)


def _in_a_word(tokens: list[re.Match], i: int) -> bool:
  if i and tokens[i - 1][0] == "_":
    return True
  return i > 0 and bool(tokens[i - 1]["word"]) and not tokens[i - 1][0].endswith("›")


def _stops(token: re.Match) -> bool:
  word = token["word"]
  natural = word and (len(word) > 1 or word in "aAI")
  return bool(natural or token["stop"] or token["command"] in _RELATIONS)


def _expression(line: str, tokens: list[re.Match], at: int, cut: bool):
  first = last = at
  while first > 0 and not _stops(tokens[first - 1]):
    first -= 1
  while last + 1 < len(tokens) and not _stops(tokens[last + 1]):
    last += 1
  if cut and first == 0:
    return None
  text = line[tokens[first].start() : tokens[last].end()]
  left, right = line[: tokens[first].start()], line[tokens[last].end() :]
  after_word = first > 0 and bool(tokens[first - 1]["word"])
  before_word = last + 1 < len(tokens) and bool(tokens[last + 1]["word"])
  if not left.strip() and _BULLET.match(text):
    return None  # an item of a list or a negative number
  if left[-1:].isalnum() and text.startswith("-"):
    return None  # GPT-4
  if not _fits(text, left, right):
    return None
  text = _without_punctuation(text, after_word=after_word, before_word=before_word, right=right)
  value = numerals.read(text) if "=" not in text else None
  return None if value is None else value * numerals.multiple(numerals.words(right)[:1])


# Words before a number that is only a part of the answer.
_PART = re.compile(
  r"(?:(?:root|half|third|quarter|fifth|tenth|percent|%|power|out)\s+of|\d\s+(?:to|remainder|R)"
  rf"|\bto\s+the|[!<>/]=|\d\s*{latex.IDEOGRAPH}{{1,3}})\s*$"
)
# 2 hours and 30 minutes: the second number is not the whole.
_RESTS = re.compile(
  r"\d\s*(?:(?:weeks?|days?|hours?|hrs?|h|minutes?|mins?)[,\s]+(?:and\s+)?\d+\s*(?:days?|hours?|"
  r"hrs?|h|minutes?|mins?|m|seconds?|secs?|s)|(?:feet|foot|ft)[,\s]+(?:and\s+)?\d+\s*in(?:ch(?:es)?)?"
  r"|years?[,\s]+(?:and\s+)?\d+\s*(?:months?|weeks?|days?)|months?[,\s]+(?:and\s+)?\d+\s*(?:weeks?|"
  r"days?)|(?:pounds?|lbs?)[,\s]+(?:and\s+)?\d+\s*(?:ounces?|oz)|(?:dollars?\s+)?and\s+\d+\s*cents?)"
  r"(?![a-zA-Z])"
)


def _fits(text: str, left: str, right: str) -> bool:
  word = re.match(r"[^\W\d_]+", right)
  glued = word and not text[-1:].isspace() and text[-1:] not in "/-"
  foreign = word and re.match(latex.IDEOGRAPH, word[0])
  if (glued or foreign) and not numerals.is_word(word[0], latex=False, glued=True, behind=True):
    return False
  if _PART.search(left[-80:]) or _RESTS.search(left[-80:] + text + right[:20]):
    return False
  before = re.search(r"([^\W\d_]+)\s*$", left)
  if before and re.search(latex.IDEOGRAPH, before[1]):
    return numerals.is_word(before[1], latex=False, glued=False, behind=False)
  changed = before and before[1].casefold() in numerals.CHANGES - {"or", "no"}
  behind = numerals.words(right[:60])[:1]
  changes_it = numerals.CHANGES_WHAT_IT_FOLLOWS.intersection(behind) or _AND_A_HALF.match(right)
  return not (changed or changes_it)


def _without_punctuation(text: str, *, after_word: bool, before_word: bool, right: str) -> str:
  """Takes off dashes, exclamation marks and parentheses that belong to the sentence."""
  if before_word:
    text = re.sub(r"(?:\s[-+]\s*|[-/]|\s*\(\s*)$", "", text)
  if after_word:
    text = re.sub(r"^\s*\)", "", text)
  excited = re.fullmatch(r"(.*\d)!+\)?\s*", text, re.DOTALL)
  if excited and after_word and (not right.strip() or re.match(r"[A-Z]", right)):
    text = excited[1]
  if after_word and text.count(")") > text.count("("):
    text = text.rstrip().removesuffix(")")
  if (before_word or not right.strip()) and text.count("(") > text.count(")"):
    text = text.lstrip().removeprefix("(")
  return text
