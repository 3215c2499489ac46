"""The splits of a task's problems: trained on, held out, left out."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

from offpolicy_rl.tasks import rows, verifiers
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.tasks.sources import Problem
from offpolicy_rl.tasks.vocabulary import Vocabulary

TRAIN_SPLIT, HELDOUT_SPLIT = "train", "heldout"


@dataclasses.dataclass(frozen=True)
class Reading:
  """The problems of a split, each question once, and what was left out."""

  problems: list[Problem]
  left_out: list[LeftOut] = dataclasses.field(default_factory=list)  # unusable rows
  repeated: list[LeftOut] = dataclasses.field(
    default_factory=list
  )  # same question as an earlier one
  held_out: int = 0  # training problems left out because they are held out

  def without(self, held: list[Problem]) -> "Reading":
    """Leaves out the problems whose question is held out, white space aside."""
    plain = lambda problem: " ".join(problem.question.split())
    questions = {plain(problem) for problem in held}
    kept = [problem for problem in self.problems if plain(problem) not in questions]
    more = len(self.problems) - len(kept)
    return dataclasses.replace(self, problems=kept, held_out=self.held_out + more)


@dataclasses.dataclass(frozen=True)
class Task:
  """A named source of problems."""

  name: str
  # Deterministic; both splits unless `heldout` is given.
  problems: Callable[[], Sequence[Problem | LeftOut]]
  verifier: str  # "module:function", (completion text, answer JSON) -> reward
  phrases: tuple[str, ...] = ()  # texts that every prompt repeats, one token each
  heldout: Callable[[], Sequence[Problem | LeftOut]] | None = (
    None  # None = one in eight of `problems`
  )
  check: Callable[[], object] = lambda: None  # raises TaskError if there are no problems
  slow: bool = False  # listing the problems takes seconds, so a start only calls `check`
  max_bad_rows: float = 0.0  # share of the problems that may be unusable

  @property
  def vocabulary(self) -> Vocabulary:
    """The task's text <-> token ids."""
    return Vocabulary(self.phrases)

  def read(self, name: str) -> Reading:
    """The problems of one split.

    Without a held-out source the hash of a question decides its split, however problems were drawn.
    A training problem whose question is held out is left out.

    Raises:
      TaskError: they can't be read, or more than `max_bad_rows` of them can't be used.
    """
    train = self._usable(self.problems())
    if self.heldout is None:
      part = lambda held: [p for p in train.problems if is_heldout(p.question) == held]
      train, held = dataclasses.replace(train, problems=part(False)), Reading(part(True))
    else:
      held = self._usable(self.heldout())
    return held if name == HELDOUT_SPLIT else train.without(held.problems)

  def split(self, name: str) -> list[Problem]:
    """The problems of one split."""
    return self.read(name).problems

  def _usable(self, listed: Sequence[Problem | LeftOut]) -> Reading:
    first, left_out, repeated = {}, [], []
    for i, problem in enumerate(listed):
      problem = _checked(problem, f"{self.name}, problem {i}")
      if isinstance(problem, LeftOut):
        left_out.append(problem)
      elif problem.question in first:
        repeated.append(_as_repeated(problem, first[problem.question]))
      else:
        first[problem.question] = problem
    check_left_out(left_out, len(listed), self.max_bad_rows)
    return Reading(list(first.values()), left_out, repeated)


def check_left_out(left_out: list[LeftOut], total: int, share: float) -> None:
  """Raises TaskError, naming the first, if more than that share of `total` rows is left out."""
  if len(left_out) > share * total:
    where, why = left_out[0]
    raise TaskError(
      f"{where}: {why} ({len(left_out)} of {total} rows can't be used; task.max_bad_rows={share:g} "
      "is the share that may be left out)"
    )


def _checked(problem: Problem | LeftOut, where: str) -> Problem | LeftOut:
  if isinstance(problem, LeftOut) or problem.where:  # rows of files were checked
    return problem
  try:
    rows.text(rows.Values(vars(problem)), "question")
    rows.check_encoding(problem.demonstration, "demonstration")
    json.loads(problem.answer)
  except rows.RowError as error:
    return LeftOut(where, str(error))
  except (ValueError, TypeError, RecursionError) as error:
    return LeftOut(where, f"answer: got {problem.answer!r:.60}, expected JSON: {error!s:.100}")
  return dataclasses.replace(problem, where=where)


def _as_repeated(problem: Problem, earlier: Problem) -> LeftOut:
  same = "the same" if _right_answer(problem) == _right_answer(earlier) else "another"
  return LeftOut(problem.where, f"asks what {earlier.where} asks, with {same} answer")


def _right_answer(problem: Problem) -> str:
  try:
    return verifiers.gold(problem.answer)
  except (ValueError, KeyError, TypeError):  # the verifier's own format
    return problem.answer


@dataclasses.dataclass(frozen=True)
class Selection:
  """The tasks of a run: one, or several at rates that add up to 1."""

  name: str
  tasks: tuple[Task, ...]
  rates: tuple[float, ...] = (1.0,)

  @property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary of a fresh model; a published one has its own tokenizer."""
    return Vocabulary(tuple(dict.fromkeys(p for task in self.tasks for p in task.phrases)))

  @property
  def verifier(self) -> str:
    """The verifier; in a mixture, each problem names its verifier in its answer data."""
    return self.tasks[0].verifier if len(self.tasks) == 1 else verifiers.MIXTURE

  @property
  def verifiers(self) -> tuple[str, ...]:
    """The verifiers of the tasks."""
    return tuple(dict.fromkeys(task.verifier for task in self.tasks))

  def check(self) -> None:
    """Raises TaskError if a task has no problems; reads all but those of slow tasks."""
    for task in self.tasks:
      task.check()
    quick = [task for task in self.tasks if not task.slow]
    for task in quick:
      if not task.split(TRAIN_SPLIT):
        raise TaskError(_too_few(task, "to train on"))
    if len(quick) == len(self.tasks) and not any(task.split(HELDOUT_SPLIT) for task in quick):
      raise TaskError(_too_few(self.tasks[0], "held out"))

  def read(self, name: str) -> list[Reading]:
    """The problems of a split per task; no task trains on what another one holds out."""
    readings = [task.read(name) for task in self.tasks]
    if len(self.tasks) == 1:
      return readings
    if name == TRAIN_SPLIT:
      held = [problem for task in self.tasks for problem in task.split(HELDOUT_SPLIT)]
      readings = [reading.without(held) for reading in readings]
    return [
      dataclasses.replace(reading, problems=_with_verifier(task, reading.problems))
      for task, reading in zip(self.tasks, readings, strict=True)
    ]

  def split(self, name: str) -> list[list[Problem]]:
    """The problems of a split per task."""
    return [reading.problems for reading in self.read(name)]


def _with_verifier(task: Task, problems: list[Problem]) -> list[Problem]:
  answer = lambda problem: verifiers.mixture_answer(task.verifier, problem.answer)
  return [dataclasses.replace(problem, answer=answer(problem)) for problem in problems]


def _too_few(task: Task, what: str) -> str:
  problems = task.split(TRAIN_SPLIT) + task.split(HELDOUT_SPLIT)
  where = f" (the first is {problems[0].where})" if problems else ""
  rule = "one in eight is held out, by its hash, or those of task.heldout_file"
  if task.heldout:
    rule = "questions that are held out are not trained on"
  return (
    f"task {task.name}: none of its {len(problems)} problems{where} is {what}, expected at least "
    f"one; {rule}"
  )


def is_heldout(question: str) -> bool:
  """One question in eight, by hash."""
  return digest(question)[0] % 8 == 0


def digest(question: str) -> bytes:
  """Hash of a question; decides its split, and gives an order unrelated to drawing."""
  return hashlib.sha256(question.encode()).digest()
