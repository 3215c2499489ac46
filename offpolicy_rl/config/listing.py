"""Lists all keys: for a terminal (`offpolicy-rl keys`), and as the table of configs/README.md."""

import difflib
import html
import re
import textwrap
from collections.abc import Iterator

from offpolicy_rl.config import keys
from offpolicy_rl.config.text import ConfigError

_WIDTH = 80


def lines(pattern: str = "") -> Iterator[str]:
  """Describes keys with `pattern` in their name or meaning, in lines of at most 80 columns.

  Raises:
    ConfigError: there is no such key.
  """
  for heading, group in _chosen(pattern).items():
    yield from (heading, "")
    for name, key in group.items():
      yield from _wrapped(f"{name} = {_default(key)}  ({_allowed(key)})", "  ", "      ")
      yield from _wrapped(key.meaning, "      ", "      ")
    yield ""


def advice(problem: str) -> str:
  """Says how to set the keys whose values an error is about; "" if it is about none.

  Among the words that the error expects, one that is like the value got is proposed.
  """
  head, got, rest = problem.partition(": got ")
  named = [key for key in head.split(", ") if got and key in keys.all_keys()]
  value, _, expected = rest.partition(", expected ")
  typed = value.strip("'").partition("'")[0]
  words = [word.strip(".") for word in re.findall(r"[\w:./-]+", expected.partition(";")[0])]
  words = [word for word in words if word not in typed]  # itself, or its module
  same = [word for word in words if word.casefold() == typed.casefold()]
  meant = (same or difflib.get_close_matches(typed, words, n=1)) if len(named) == 1 else []
  flags = " ".join(f"--config.{key}={meant[0] if meant else '...'}" for key in named)
  return f"set {flags}; `offpolicy-rl keys {named[0]}` says what it means" if named else ""


def _chosen(pattern: str) -> dict[str, dict[str, keys.Key]]:
  matches = lambda name, key: pattern.lower() in f"{name} {key.meaning}".lower()
  found = {
    heading: chosen
    for heading, group in keys.groups().items()
    if (chosen := {name: key for name, key in group.items() if matches(name, key)})
  }
  if not found:
    raise ConfigError(
      f"PATTERN: got {pattern!r}, which no key has in its name or meaning; "
      "`offpolicy-rl keys` lists all"
    )
  return found


def _wrapped(text: str, first: str, others: str) -> list[str]:
  return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=others)


def table(pattern: str = "") -> Iterator[str]:
  """Describes keys as `lines` does, in Markdown: a table under each heading."""
  for heading, group in _chosen(pattern).items():
    yield from ("", f"### {heading}", "", "| key | default | allowed | meaning |")
    yield "| --- | --- | --- | --- |"
    for name, key in group.items():
      cells = [f"`{name}`", f"`{_default(key)}`", _allowed(key), key.meaning]
      yield "| " + " | ".join(html.escape(x, quote=False).replace("|", "\\|") for x in cells) + " |"


def _default(key: keys.Key) -> str:
  return str(key.default) if key.default != "" else "''"


def _allowed(key: keys.Key) -> str:
  return f"{key.kind.__name__}, {key.expected}" if key.kind in (int, float) else key.expected
