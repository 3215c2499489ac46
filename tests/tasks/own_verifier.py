"""A verifier as a user would bring it; in a file of its own, as its processes import it."""

from offpolicy_rl.tasks import verifiers


@verifiers.verifier
def fails_on_even(completion: str, answer: str) -> float:
  """Raises on completions of even length and finds the others right."""
  if len(completion) % 2 == 0:
    raise RuntimeError("even")
  return 1.0
