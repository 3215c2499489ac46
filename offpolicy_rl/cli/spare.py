"""A process that waits for its arguments (`children.Spares`), and imports a module meanwhile.

    python -m offpolicy_rl.cli.spare MODULE

reads a line of JSON: "arguments" of offpolicy-rl, and a file for its "output".
"""

import importlib
import json
import os
import sys

from offpolicy_rl.system import children, memory


def _main() -> int:
  """Returns the exit code; 0 if no line comes."""
  children.end_with_parent()
  memory.keep_freed_memory()
  importlib.import_module(sys.argv[1])
  line = sys.stdin.readline()
  if not line:
    return 0
  order = json.loads(line)
  output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
  for number in (1, 2):
    os.dup2(output, number)
  os.close(output)
  from offpolicy_rl.cli import main  # not before: workers of this process import this file

  return main.main(order["arguments"])


if __name__ == "__main__":
  sys.exit(_main())
