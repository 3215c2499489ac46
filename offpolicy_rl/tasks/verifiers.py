"""Verifiers: (completion text, answer JSON) -> reward. They run in worker processes.

To bring your own, decorate a function of an importable module and name it in task.verifier as
"module:function":

    from offpolicy_rl.tasks import verifiers

    @verifiers.verifier
    def short_and_right(completion: str, answer: str) -> float:
      return float(json.loads(answer) in completion and len(completion) < 80)

1.0 means right; held-out accuracy counts nothing else. A verifier sees finished completions only,
with their thoughts (`thoughts.removed` removes them).
"""

import functools
import json
from typing import Any

from offpolicy_rl.tasks import code, extraction, numerals
from offpolicy_rl.tasks.scoring import allowed, resolve, verifier

# Short names for task.verifier; if several fit, the first is best.
NAMED = {
  "numeric": "offpolicy_rl.tasks.verifiers:numeric",
  "math_verify": "offpolicy_rl.tasks.symbolic:math_verify",
  "exact": "offpolicy_rl.tasks.verifiers:exact",
  "code": "offpolicy_rl.tasks.code:code",
  "reasoning_gym": "offpolicy_rl.tasks.verifiers:reasoning_gym",
}
MIXTURE = "offpolicy_rl.tasks.verifiers:mixture"
SEQIO_METRIC = "offpolicy_rl.tasks.seqio_metric:seqio_metric"
# Tasks of reasoning-gym 0.1.25 that can't be trained on, and why.
REFUSED = (
  {
    "game_of_life_halting": "its scorer gives full marks to junk",
    "coin_flip": "its scorer gives full marks to 10 for 1, and to 0 for small chances",
    "complex_arithmetic": "its scorer gives full marks to nan",
    "composite": "it is a mixture of others; list them in task.mixture",
  }
  | dict.fromkeys(
    ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
    "it has no answers of its own to check its scorer with",
  )
  | dict.fromkeys(
    str.split(
      "countdown puzzle24 simple_integration intermediate_integration polynomial_multiplication"
    ),
    "its scorer runs the completion as Python",
  )
  | dict.fromkeys(
    ("bitwise_arithmetic", "number_sorting"),
    "its scorer runs the problem, which comes over the wire, as Python",
  )
)
# Their scorers run the completion as Python, too, but only to give part of the marks.
JUDGED_BY_EQUALITY = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")


@verifier
def exact(completion: str, answer: str) -> float:
  """1.0 when the completion is the answer, up to white space at the ends.

  Text up to a closed thought does not count; of an answer in <answer> tags, only the inside does.
  """
  return float(extraction.answer_text(completion) == gold(answer).strip())


@verifier
def numeric(completion: str, answer: str) -> float:
  """1.0 when the completion's number (`extraction.number`) equals the answer's, exactly."""
  expected = numerals.read(gold(answer))
  if expected is None:
    raise ValueError(f"answer: got {gold(answer)!r:.100}, expected one number")
  return float(extraction.number(completion) == expected)


@functools.cache
def _scorer(dataset: str):
  if dataset in JUDGED_BY_EQUALITY:
    return _equals
  if dataset in REFUSED:  # checked again: the problem comes from a learner
    raise ValueError(f"reasoning_gym:{dataset} can't be judged: {REFUSED[dataset]}")
  from reasoning_gym import get_score_answer_fn  # heavy, and only this verifier needs it

  return get_score_answer_fn(dataset)


def _equals(given: str, entry: dict) -> float:
  right = entry["metadata"].get("valid_answers", [entry["answer"]])
  return float(given.strip() in [answer.strip() for answer in right])


@verifier
def reasoning_gym(completion: str, answer: str) -> float:
  """1.0 when the package's scorer gives full marks; <answer> tags are removed.

  Only full marks count: the package's default scorer gives part of them to any text that contains
  the answer, which would reward listing every number.
  """
  data = loads(answer)
  given = extraction.answer_text(completion)
  return float(given is not None and _scorer(data["dataset"])(given, data["entry"]) == 1.0)


@verifier
def mixture(completion: str, answer: str) -> float:
  """The verdict of the verifier named in the answer data, one of those configured."""
  data = json.loads(answer)
  return allowed(data["verifier"])(completion, data["answer"])


def mixture_answer(name: str, answer: str) -> str:
  """Answer data for `mixture`: those of the problem, and the name of its verifier."""
  return json.dumps({"verifier": name, "answer": answer})


def gold(answer: str) -> str:
  """The right answer as a text, from the answer data of any task here, in a mixture or alone."""
  data = json.loads(answer)
  if isinstance(data, dict) and data.keys() == {"verifier", "answer"}:
    return gold(data["answer"])
  return data.get("entry", data)["answer"] if isinstance(data, dict) else data


def why_unusable(verifier_name: str, answer: str, demonstration: str = "") -> str | None:
  """Reason why a verifier can't judge answers to a problem with these answer data; None if it can.

  Judges the right answer as if a completion had given it, in this process. The verifiers of this
  file must find it right; any other must only not raise. `verifier_name`: "module:function" or a
  short name. `demonstration`: an answer that `code` tries, as its answer data hold tests only.
  """
  name = NAMED.get(verifier_name, verifier_name)
  if name == MIXTURE:
    data = json.loads(answer)
    return why_unusable(data["verifier"], data["answer"], demonstration)
  if name == NAMED["code"]:
    return code.why_unusable(answer, demonstration)
  try:
    judge, right = resolve(name), gold(answer)
    reward = judge(rf"\boxed{{{right}}}" if name == NAMED["math_verify"] else right, answer)
  except Exception as error:  # whatever it raises would cost every completion its reward
    reason = str(error) or type(error).__name__
    if name == NAMED["numeric"] and "####" in answer:
      return f"{reason}: only what follows '####', as task.name=gsm8k reads it"
    return reason
  if not right.strip():
    return "answer: it is empty"
  if name in NAMED.values() and reward != 1.0:
    return f"answer: {right!r:.100} given as an answer is not found right"
  return None


def dumps(value: Any) -> str:
  """JSON in which tuples stay tuples: some of reasoning-gym's scorers tell them from lists."""

  def tagged(x):
    if isinstance(x, dict):
      return {key: tagged(inner) for key, inner in x.items()}
    if isinstance(x, list | tuple):
      inner = [tagged(item) for item in x]
      return {"__tuple__": inner} if isinstance(x, tuple) else inner
    return x

  return json.dumps(tagged(value), default=str)


def loads(text: str) -> Any:
  """Inverse of `dumps`."""
  untag = lambda x: tuple(x["__tuple__"]) if x.keys() == {"__tuple__"} else x
  return json.loads(text, object_hook=untag)
