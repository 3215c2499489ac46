"""Problems as token ids: prompts and demonstrations."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from offpolicy_rl.tasks import sources, splits, stream
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.tasks.tokenizer import Tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [M], ends as the model ends its turn
  answer: str  # JSON for the verifier or environment
  where: str = ""  # "file:line" of the problem
  record: Any = None  # the example for a seqio metric
  task: str = ""  # name of its task
  environment: str = ""  # "module:class" that plays it; "" = its completions have one turn


@dataclasses.dataclass(frozen=True)
class Rendering:
  """The way in which the problems of a task become prompts."""

  tokenizer: Tokenizer | Vocabulary  # the policy's, which may show tools
  max_prompt_tokens: int
  fault: Callable[[Example], str | None] = lambda example: None  # why no sampler could answer it
  # The answer data of a ticket, JSON; ValueError if there is none.
  answer: Callable[[sources.Problem], str] = lambda problem: problem.answer
  # Tokens of a prompt -> those of its ticket; ValueError if it has not the right ones.
  trim: Callable[[Sequence[int]], list[int]] = list
  task: str = ""  # as in `Example`
  environment: str = ""


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Prompts, and the problems that gave none."""

  examples: list[Example]
  too_long: list[LeftOut]  # more than max_prompt_tokens
  left_out: list[LeftOut]  # the template refuses them, or no sampler could answer them
  prompt_lengths: list[int]  # in tokens, of the examples and of those that are too long
  streamed: stream.Streamed | None = None  # all of them, if those above are only the first

  @property
  def prompts(self) -> list[Example] | stream.Streamed:
    """All prompts, listed or streamed."""
    return self.streamed or self.examples


def tokenize(problems: Iterable[sources.Problem], rendering: Rendering) -> Tokenized:
  """Turns problems into prompts."""
  result, its = Tokenized([], [], [], []), (rendering.task, rendering.environment)
  for problem in problems:
    try:
      prompt, target = _ids(problem, rendering.tokenizer)
      prompt, data = rendering.trim(prompt), rendering.answer(problem)
    except ValueError as error:  # what a chat template refuses, or a token without an embedding
      result.left_out.append(LeftOut(problem.where, str(error)))
      continue
    result.prompt_lengths.append(len(prompt))
    if len(prompt) > rendering.max_prompt_tokens:
      result.too_long.append(LeftOut(problem.where, f"{len(prompt)} tokens"))
      continue
    prompt, target = np.array(prompt, np.int32), np.array(target, np.int32)
    example = Example(prompt, target, data, problem.where, problem.record, *its)
    if why := rendering.fault(example):
      result.left_out.append(LeftOut(problem.where, why))
    else:
      result.examples.append(example)
  return result


def _ids(problem: sources.Problem, tokenizer: Tokenizer | Vocabulary) -> tuple[Sequence, list]:
  if problem.tokens is not None:
    prompt, target = problem.tokens
    target = tokenizer.encode(problem.demonstration) if target is None else target
    return prompt, [*target, tokenizer.turn_end]
  if problem.messages and isinstance(tokenizer, Tokenizer):
    prompt = tokenizer.prompt(problem.question, problem.messages)
  else:
    prompt = tokenizer.prompt(problem.question)
  return prompt, [*tokenizer.encode(problem.demonstration), tokenizer.turn_end]


def tokenize_split(
  selection: splits.Selection, split: str, rendering: Callable[[splits.Task], Rendering]
) -> list[tuple[float, Tokenized]]:
  """(rate, prompts) of each task; `stream` interleaves them.

  Raises:
    TaskError: more problems of a task make no prompt than its `max_bad_rows`, or it brings token
      ids of another tokenizer.
  """
  members = []
  for rate, task, reading in zip(
    selection.rates, selection.tasks, selection.read(split), strict=True
  ):
    its = rendering(task)
    require_same_ids(task, its.tokenizer)
    tokenized = tokenize(reading.problems, its)
    splits.check_left_out(tokenized.left_out, len(reading.problems), task.max_bad_rows)
    left_out = reading.left_out + tokenized.left_out
    more = None
    if reading.rest is not None:
      more = stream.Streamed(reading.rest.open, functools.partial(_make, reading.rest, its))
    members.append((rate, dataclasses.replace(tokenized, left_out=left_out, streamed=more)))
  return members


def _make(rest: splits.Rest, rendering: Rendering, listed: list) -> list[Example]:
  return tokenize(rest.usable(listed), rendering).examples


def require_same_ids(task: splits.Task, tokenizer: Tokenizer | Vocabulary) -> None:
  """Raises TaskError if the task brings token ids of another tokenizer than the policy's."""
  if why := task.why_other_ids(tokenizer):
    raise TaskError(f"task {task.name}: {why}")
