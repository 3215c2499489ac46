"""A stand-in for a command line tool: notes its calls, answers as it is told, refuses the unknown.

A copy called NAME reads NAME.json beside it:

  {"commands": {"delete secret": ["--ignore-not-found"], ...},  words -> the flags that they know;
                                                                "": those before the first word
   "answers": {"delete secret": ["first", "then"]}}             words -> outputs, the last one stays

and appends {"argv": [...], "stdin": "..."} to NAME.calls.
"""

import json
import pathlib
import sys

_UNKNOWN = 64


def main() -> int:
  """The exit code: 0, or 64 for a command or flag that the tool does not know."""
  here = pathlib.Path(sys.argv[0])
  argv = sys.argv[1:]
  tool = json.loads(here.with_suffix(".json").read_text())
  stdin = sys.stdin.read() if "-" in argv else ""
  with here.with_suffix(".calls").open("a") as file:
    file.write(json.dumps({"argv": argv, "stdin": stdin}) + "\n")
  words = " ".join(argument for argument in argv if not argument.startswith("--"))
  known = [c for c in tool["commands"] if not c or words == c or words.startswith(f"{c} ")]
  if not known:
    print(f"{here.name}: no command {words}", file=sys.stderr)
    return _UNKNOWN
  for flag in _flags(argv, leading=known == [""]):
    if flag not in tool["commands"][max(known, key=len)]:
      print(f"{here.name} {words}: no flag {flag}", file=sys.stderr)
      return _UNKNOWN
  _answer(here, " ".join(argv), tool["answers"])
  return 0


def _flags(argv: list[str], *, leading: bool) -> list[str]:
  """Names of all flags, or of those before the first word."""
  found = []
  for argument in argv:
    if argument.startswith("--"):
      found.append(argument.split("=")[0])
    elif leading:
      break
  return found


def _answer(here: pathlib.Path, line: str, answers: dict) -> None:
  """Prints the first answer whose words are all in the line."""
  for number, (words, outputs) in enumerate(answers.items()):
    if all(word in line for word in words.split()):
      note = here.with_suffix(f".{number}")
      told = int(note.read_text()) if note.exists() else 0
      note.write_text(str(told + 1))
      print(outputs[min(told, len(outputs) - 1)])
      return


if __name__ == "__main__":
  sys.exit(main())
