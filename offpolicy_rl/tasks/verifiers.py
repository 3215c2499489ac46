"""Verifiers: (completion text, answer JSON) -> reward. They run in worker processes."""

import functools
import json


def exact(completion: str, answer: str) -> float:
  """1.0 when the completion is the answer, white space at the ends aside."""
  return float(completion.strip() == json.loads(answer))


@functools.cache
def _scorer(dataset: str):
  from reasoning_gym import get_score_answer_fn  # heavy, and only this verifier needs it

  return get_score_answer_fn(dataset)


def reasoning_gym(completion: str, answer: str) -> float:
  """1.0 when the package's own scorer gives full marks.

  Only full marks count: the package's default scorer gives part of them to any text that contains
  the answer, which would pay for listing every number.
  """
  data = json.loads(answer)
  return float(_scorer(data["dataset"])(completion, data["entry"]) == 1.0)
