"""The splits of a task's problems: trained on, held out, left out."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from offpolicy_rl.tasks import rows, sources, verifiers
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.tasks.sources import Problem
from offpolicy_rl.tasks.vocabulary import Vocabulary

TRAIN_SPLIT, HELDOUT_SPLIT = "train", "heldout"
_HELDOUT = ("heldout", "validation", "dev", "test")  # the first of these that a data set has


@dataclasses.dataclass(frozen=True)
class Rest:
  """A source that is too large to list, from any row on."""

  open: Callable[[int], Iterator[Problem | LeftOut]]  # one pass, from this row on
  usable: Callable[[Sequence[Problem | LeftOut]], list[Problem]]

  def then(self, change: Callable[[list[Problem]], list[Problem]]) -> "Rest":
    """The same with a further step."""
    return Rest(self.open, lambda listed: change(self.usable(listed)))


@dataclasses.dataclass(frozen=True)
class Reading:
  """The problems of a split, each question once, and what was left out.

  Those of the first block if there is a `rest`.
  """

  problems: list[Problem]
  left_out: list[LeftOut] = dataclasses.field(default_factory=list)  # unusable rows
  repeated: list[LeftOut] = dataclasses.field(
    default_factory=list
  )  # same question as an earlier one
  held_out: int = 0  # training problems left out because they are held out
  rest: Rest | None = None

  def changed(self, change: Callable[[list[Problem]], list[Problem]]) -> "Reading":
    """The same with other problems."""
    rest = self.rest and self.rest.then(change)
    return dataclasses.replace(self, problems=change(self.problems), rest=rest)

  def without(self, held: list[Problem]) -> "Reading":
    """Leaves out the problems whose question is held out, white space aside."""
    plain = lambda problem: " ".join(problem.question.split())
    questions = {plain(problem) for problem in held}
    kept = self.changed(lambda problems: [p for p in problems if plain(p) not in questions])
    more = len(self.problems) - len(kept.problems)
    return dataclasses.replace(kept, held_out=self.held_out + more)


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
  # Says why the token ids in the problems are not those of the policy; None if they are.
  why_other_ids: Callable[[Any], str | None] = lambda tokenizer: None
  environment: str = ""  # "module:class" that its problems are played in; "" = they are judged
  module: str = ""  # registers the tasks that verifiers.SEQIO_METRIC asks
  # verifier -> (rate, task) of each of those that this one stands for; may load TensorFlow.
  members: Callable[[str], Sequence[tuple[float, "Task"]]] | None = None

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
      part = lambda problems, held: [p for p in problems if is_heldout(p.question) == held]
      held = Reading(part(train.problems, True))
      train = train.changed(lambda problems: part(problems, False))
    else:
      held = self._usable(self.heldout())
    return held if name == HELDOUT_SPLIT else train.without(held.problems)

  def split(self, name: str) -> list[Problem]:
    """The problems of one split."""
    return self.read(name).problems

  def _usable(self, listed: Sequence[Problem | LeftOut]) -> Reading:
    reading = self._sorted(listed)
    check_left_out(reading.left_out, len(listed), self.max_bad_rows)
    if not isinstance(listed, sources.Beginning):
      return reading
    rest = Rest(listed.open, lambda more: self._sorted(more).problems)
    return dataclasses.replace(reading, rest=rest)

  def _sorted(self, listed: Sequence[Problem | LeftOut]) -> Reading:
    first, left_out, repeated = {}, [], []
    for i, problem in enumerate(listed):
      problem = _checked(problem, f"{self.name}, problem {i}")
      if isinstance(problem, LeftOut):
        left_out.append(problem)
      elif problem.question in first:
        repeated.append(_as_repeated(problem, first[problem.question]))
      else:
        first[problem.question] = problem
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
  mixed: bool = False  # each has a verifier of its own

  @property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary of a fresh model; a published one has its own tokenizer."""
    return Vocabulary(tuple(dict.fromkeys(p for task in self.tasks for p in task.phrases)))

  @property
  def verifier(self) -> str:
    """The verifier; in a mixture, each judged problem names its verifier in its answer data."""
    return verifiers.MIXTURE if self.mixed else self.tasks[0].verifier

  @property
  def judged(self) -> tuple[Task, ...]:
    """The tasks that verifiers judge; the others are played in environments."""
    return tuple(task for task in self.tasks if not task.environment)

  @property
  def verifiers(self) -> tuple[str, ...]:
    """The verifiers of the judged tasks."""
    return tuple(dict.fromkeys(task.verifier for task in self.judged))

  @property
  def modules(self) -> tuple[str, ...]:
    """Modules that the verifiers need."""
    asked = [task.module for task in self.judged if task.verifier == verifiers.SEQIO_METRIC]
    return tuple(dict.fromkeys(asked))

  def played_in(self, environment: str) -> "Selection":
    """The same tasks, all in one environment; "" = all are judged."""
    tasks = (dataclasses.replace(task, environment=environment) for task in self.tasks)
    return dataclasses.replace(self, tasks=tuple(tasks))

  def expanded(self) -> "Selection":
    """The tasks behind those that stand for others; loads TensorFlow if there are any.

    Raises:
      TaskError: they can't be found.
    """
    members = [
      (rate * share, dataclasses.replace(member, environment=task.environment))
      for rate, task in zip(self.rates, self.tasks, strict=True)
      for share, member in (task.members(task.verifier) if task.members else [(1.0, task)])
    ]
    rates, tasks = zip(*members, strict=True)
    return dataclasses.replace(self, tasks=tasks, rates=rates)

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
    if name == TRAIN_SPLIT and len(self.tasks) > 1:
      held = [problem for task in self.tasks for problem in task.split(HELDOUT_SPLIT)]
      readings = [reading.without(held) for reading in readings]
    return [
      reading.changed(functools.partial(_with_verifier, task))
      if self.mixed and not task.environment
      else reading
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


def heldout_split(where: str, splits: Collection[str], settings: Any) -> str | None:
  """The split that is held out among those there are; None = an eighth of the training split.

  Raises:
    TaskError: `settings` (task.train_split, task.heldout_split) name one that is not there.
  """
  wanted = {"train_split": settings.train_split, "heldout_split": settings.heldout_split}
  for key, split in wanted.items():
    if split and split.partition("[")[0] not in splits:
      raise TaskError(f"task.{key}: got {split!r}, expected a split of {where}: {sorted(splits)}")
  if settings.heldout_split:
    return settings.heldout_split
  return next((split for split in _HELDOUT if split in splits), None)


def is_heldout(question: str) -> bool:
  """One question in eight, by hash."""
  return digest(question)[0] % 8 == 0


def digest(question: str) -> bytes:
  """Hash of a question; decides its split, and gives an order unrelated to drawing."""
  return hashlib.sha256(question.encode()).digest()
