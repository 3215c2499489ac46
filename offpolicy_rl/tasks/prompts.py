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

Trim = Callable[[Sequence[int]], list[int]]


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [M], ends as the model ends its turn
  answer: str  # JSON for the verifier
  where: str = ""  # "file:line" of the problem
  record: Any = None  # the example for a seqio metric


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


def tokenize(
  problems: Iterable[sources.Problem],
  tokenizer: Tokenizer | Vocabulary,
  max_prompt_tokens: int,
  fault: Callable[[Example], str | None] = lambda example: None,
  answer: Callable[[sources.Problem], str] = lambda problem: problem.answer,
  trim: Trim = list,
) -> Tokenized:
  """Turns problems into prompts.

  Args:
    tokenizer: the policy's.
    fault: the reason why no sampler could answer a prompt; None if one can.
    answer: the answer data of a ticket, JSON; ValueError if there is none.
    trim: tokens of a prompt -> those of its ticket; ValueError if it has not the right ones.
  """
  result = Tokenized([], [], [], [])
  for problem in problems:
    try:
      (prompt, target), data = _ids(problem, tokenizer), answer(problem)
      prompt = trim(prompt)
    except ValueError as error:  # what a chat template refuses, or a token without an embedding
      result.left_out.append(LeftOut(problem.where, str(error)))
      continue
    result.prompt_lengths.append(len(prompt))
    if len(prompt) > max_prompt_tokens:
      result.too_long.append(LeftOut(problem.where, f"{len(prompt)} tokens"))
      continue
    prompt, target = np.array(prompt, np.int32), np.array(target, np.int32)
    example = Example(prompt, target, data, problem.where, problem.record)
    if why := fault(example):
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
  selection: splits.Selection,
  split: str,
  tokenizer: Tokenizer | Vocabulary,
  max_prompt_tokens: int,
  fault: Callable[[Example], str | None] = lambda example: None,
  answer: Callable[[sources.Problem], str] = lambda problem: problem.answer,
  trim: Trim = list,
) -> list[tuple[float, Tokenized]]:
  """(rate, prompts) of each task; `stream` interleaves them. Arguments as for `tokenize`.

  Raises:
    TaskError: more problems of a task make no prompt than its `max_bad_rows`, or it brings token
      ids of another tokenizer.
  """
  members = []
  for rate, task, reading in zip(
    selection.rates, selection.tasks, selection.read(split), strict=True
  ):
    require_same_ids(task, tokenizer)
    tokenized = tokenize(reading.problems, tokenizer, max_prompt_tokens, fault, answer, trim)
    splits.check_left_out(tokenized.left_out, len(reading.problems), task.max_bad_rows)
    left_out = reading.left_out + tokenized.left_out
    more = None
    if reading.rest is not None:
      make = functools.partial(
        _make, reading.rest, tokenizer, max_prompt_tokens, fault, answer, trim
      )
      more = stream.Streamed(reading.rest.open, make)
    members.append((rate, dataclasses.replace(tokenized, left_out=left_out, streamed=more)))
  return members


def _make(rest: splits.Rest, tokenizer, max_tokens, fault, answer, trim, listed: list) -> list:
  return tokenize(rest.usable(listed), tokenizer, max_tokens, fault, answer, trim).examples


def require_same_ids(task: splits.Task, tokenizer: Tokenizer | Vocabulary) -> None:
  """Raises TaskError if the task brings token ids of another tokenizer than the policy's."""
  if why := task.why_other_ids(tokenizer):
    raise TaskError(f"task {task.name}: {why}")
