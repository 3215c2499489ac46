"""The verifier that understands mathematics: the package math-verify (extra "math")."""

import logging

from offpolicy_rl.tasks import extraction, thoughts, verifiers

try:
  import math_verify as package
except ImportError as error:
  raise ValueError(
    "task.verifier: math_verify needs its package: pip install offpolicy-rl[math]"
  ) from error

# It warns that its own time limits are off, as they are here: they need signals in a main thread.
# The worker process has a limit instead (task.verifier_seconds).
logging.getLogger("math_verify").setLevel(logging.ERROR)


def _parse(text: str) -> list:
  return package.parse(text, parsing_timeout=None, raise_on_error=True)


@verifiers.verifier
def math_verify(completion: str, answer: str) -> float:
  r"""1.0 when the completion's answer equals the right one as mathematics.

  Fractions, sets, intervals, expressions, LaTeX or plain. Where <answer> tags mark the answer, only
  what is inside counts, and it need not be in \boxed or between dollars.
  """
  expected = _parse(f"\\boxed{{{verifiers.gold(answer)}}}")
  completion = thoughts.removed(completion)
  if completion is None:
    return 0.0
  tagged = extraction.last_tagged(completion)
  texts = [completion] if tagged is None else [tagged, f"${tagged}$"]
  return float(
    any(
      package.verify(expected, _parse(text), timeout_seconds=None, raise_on_error=True)
      for text in texts
    )
  )
