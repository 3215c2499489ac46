"""The tasks by name: where problems come from, how they read as tokens, who judges the answers.

Free of TensorFlow and seqio, because every sampler host imports it. To add a task, write a function
that lists problems, and add a `Task` to `TASKS`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable

from offpolicy_rl.tasks.vocabulary import Vocabulary

TRAIN_SPLIT, HELDOUT_SPLIT = "train", "heldout"


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question with what the verifier needs to judge an answer to it."""

  question: str
  answer: str  # JSON
  demonstration: str  # an answer worth imitating


@dataclasses.dataclass(frozen=True)
class Task:
  """A named source of problems."""

  name: str
  problems: Callable[[], list[Problem]]  # deterministic, both splits together
  verifier: str  # "module:function", (completion text, answer JSON) -> reward
  phrases: tuple[str, ...] = ()  # texts that every prompt repeats, one token each

  @property
  def vocabulary(self) -> Vocabulary:
    """The task's text <-> token ids."""
    return Vocabulary(self.phrases)

  def split(self, name: str) -> list[Problem]:
    """Distinct problems of one split.

    A question belongs to the held-out split or to training by its own hash, so the two can not
    share one, however the problems were drawn.
    """
    distinct = {problem.question: problem for problem in self.problems()}
    return [p for p in distinct.values() if is_heldout(p.question) == (name == HELDOUT_SPLIT)]


def is_heldout(question: str) -> bool:
  """One question in eight, by hash."""
  return hashlib.sha256(question.encode()).digest()[0] % 8 == 0


def _reasoning_gym(
  dataset: str, size: int, *, keep: Callable[[dict], bool] = lambda entry: True, **options
) -> Callable[[], list[Problem]]:
  """Problems of a reasoning-gym data set, https://github.com/open-thought/reasoning-gym.

  `size` entries are drawn with the package's `options`; `keep` says which of them stay.
  """

  def problems():
    import reasoning_gym  # about 2 s to import; only those who need problems pay

    entries = reasoning_gym.create_dataset(dataset, size=size, seed=0, **options)
    return [
      Problem(
        question=entry["question"],
        answer=json.dumps({"dataset": dataset, "entry": entry}, default=str),
        demonstration=entry["answer"],
      )
      for entry in entries
      if keep(entry)
    ]

  return problems


def _sums() -> list[Problem]:
  """Every a+b with one-digit a and b."""
  return [
    Problem(f"{a}+{b}=", json.dumps(str(a + b)), str(a + b)) for a in range(10) for b in range(10)
  ]


TASKS = {
  task.name: task
  for task in (
    Task(
      name="chain_sum",  # a + b with two digits each; the package also draws subtractions
      problems=_reasoning_gym(
        "chain_sum",
        14_000,
        keep=lambda entry: "+" in entry["question"],
        min_terms=2,
        max_terms=2,
        min_digits=2,
        max_digits=2,
      ),
      verifier="offpolicy_rl.tasks.verifiers:reasoning_gym",
      phrases=("State the final answer to the following arithmetic problem: ", " + ", " ="),
    ),
    Task(
      name="spell_backward",
      problems=_reasoning_gym("spell_backward", 10_000, min_word_len=3, max_word_len=5),
      verifier="offpolicy_rl.tasks.verifiers:reasoning_gym",
      phrases=("Spell this word backward (example: sun -> nus): ",),
    ),
    Task(
      name="sums",
      problems=_sums,
      verifier="offpolicy_rl.tasks.verifiers:exact",
    ),
  )
}
