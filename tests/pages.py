"""What the project's pages say, as data: links, headings, commands, files to be written.

A command is a line of an indented or fenced block, or an inline code span, that begins with a word
of `STARTS`. The block below `<!-- runnable -->` is run as it stands. A fenced block whose first
line is `# my_NAME.py` is a file.
"""

import pathlib
import re
from typing import NamedTuple

from tests.conftest import ROOT

STARTS = ("offpolicy-rl ", "make ", "python -m ", ".venv/bin/", "launch/", "pip install offpolicy")
RUNNABLE = "<!-- runnable -->"
_BLOCK = re.compile(r"(?:^    .*\n)(?:(?:^    .*)?\n)*?(?=^\S|\Z)", re.MULTILINE)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


class Command(NamedTuple):
  """A command as the page shows it."""

  page: pathlib.Path
  text: str  # in one line, without its comment
  whole: bool  # False: mentioned in a sentence, arguments may be missing


def all_pages() -> list[pathlib.Path]:
  """Every page of the project."""
  places = ("*.md", "*/README.md", "offpolicy_rl/*/README.md", "tests/**/README.md")
  hidden = lambda path: any(part.startswith(".") for part in path.relative_to(ROOT).parts)
  return sorted({p for place in places for p in ROOT.glob(place) if not hidden(p)})


def cards() -> list[pathlib.Path]:
  """Every file of configs/, whose docstrings show commands, too."""
  return sorted((ROOT / "configs").glob("*.py"))


def prose(page: pathlib.Path) -> str:
  """A page without its blocks."""
  return _BLOCK.sub("", _FENCED.sub("", page.read_text()))


def blocks(text: str) -> list[str]:
  """What stands in indented and in fenced blocks, without the indentation."""
  fenced = [found[2] for found in _FENCED.finditer(text)]
  indented = [found[0] for found in _BLOCK.finditer(_FENCED.sub("", text))]
  return fenced + [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented]


def lines(block: str) -> list[str]:
  """Commands of a block: continued lines joined, comments left out."""
  joined = re.sub(r"\\\n\s*", "", block)
  found = [re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()]
  return [line for line in found if _bare(line).startswith(STARTS)]


def _bare(line: str) -> str:
  """Without variables of the environment in front."""
  return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)


def commands(page: pathlib.Path) -> list[Command]:
  """All commands of a page, or of the docstring that a card begins with."""
  text = page.read_text()
  if page.suffix == ".py":
    inside = re.sub(r"^(?:  |\w+: +)", "", text.split('"""')[1], flags=re.MULTILINE)
    return [Command(page, _bare(line), True) for line in lines(inside)]
  found = [Command(page, _bare(line), True) for block in blocks(text) for line in lines(block)]
  spans = [span for span in _SPAN.findall(prose(page)) if span.startswith(STARTS)]
  return found + [Command(page, span, False) for span in spans]


def runnable(page: pathlib.Path) -> list[str]:
  """Commands of the blocks that are marked."""
  parts = [part.lstrip("\n") for part in page.read_text().split(RUNNABLE + "\n")[1:]]
  return [line for part in parts for line in lines(_BLOCK.match(part)[0].replace("\n    ", "\n"))]


def files(page: pathlib.Path) -> dict[str, str]:
  """Name -> text of the files that a page shows."""
  found = [match[2] for match in _FENCED.finditer(page.read_text()) if match[1] == "python"]
  return {text.splitlines()[0].removeprefix("# "): text for text in found}


def links(page: pathlib.Path) -> list[str]:
  """Targets of all links that stay in the project."""
  found = _LINK.findall(page.read_text())
  return [target for target in found if not re.match(r"https?:|mailto:", target)]


def anchors(page: pathlib.Path) -> set[str]:
  """Of a page's headings, as GitHub makes them."""
  heads = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def spans(page: pathlib.Path) -> list[str]:
  """Every inline code span."""
  return _SPAN.findall(prose(page))
