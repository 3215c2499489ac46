"""Problems as token ids: prompts and demonstrations."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from offpolicy_rl.tasks import sources, splits
from offpolicy_rl.tasks.rows import LeftOut
from offpolicy_rl.tasks.tokenizer import Tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [M], ends as the model ends its turn
  answer: str  # JSON for the verifier
  where: str = ""  # "file:line" of the problem


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Prompts, and the problems that gave none."""

  examples: list[Example]
  too_long: list[LeftOut]  # more than max_prompt_tokens
  left_out: list[LeftOut]  # the template refuses them, or no sampler could answer them
  prompt_lengths: list[int]  # in tokens, of the examples and of those that are too long


def tokenize(
  problems: Iterable[sources.Problem],
  tokenizer: Tokenizer | Vocabulary,
  max_prompt_tokens: int,
  fault: Callable[[Example], str | None] = lambda example: None,
) -> Tokenized:
  """Turns problems into prompts.

  Args:
    tokenizer: the policy's.
    fault: the reason why no sampler could answer a prompt; None if one can.
  """
  result = Tokenized([], [], [], [])
  for problem in problems:
    try:
      prompt = tokenizer.prompt(problem.question)
      target = [*tokenizer.encode(problem.demonstration), tokenizer.turn_end]
    except ValueError as error:  # what a chat template refuses, or a token without an embedding
      result.left_out.append(LeftOut(problem.where, str(error)))
      continue
    result.prompt_lengths.append(len(prompt))
    if len(prompt) > max_prompt_tokens:
      result.too_long.append(LeftOut(problem.where, f"{len(prompt)} tokens"))
      continue
    prompt, target = np.array(prompt, np.int32), np.array(target, np.int32)
    example = Example(prompt, target, problem.answer, problem.where)
    if why := fault(example):
      result.left_out.append(LeftOut(problem.where, why))
    else:
      result.examples.append(example)
  return result


def tokenize_split(
  selection: splits.Selection,
  split: str,
  tokenizer: Tokenizer | Vocabulary,
  max_prompt_tokens: int,
  fault: Callable[[Example], str | None] = lambda example: None,
) -> list[tuple[float, Tokenized]]:
  """(rate, prompts) of each task; `stream` interleaves them. Arguments as for `tokenize`.

  TaskError if more problems of a task make no prompt than its `max_bad_rows`.
  """
  members = []
  for rate, task, reading in zip(
    selection.rates, selection.tasks, selection.read(split), strict=True
  ):
    tokenized = tokenize(reading.problems, tokenizer, max_prompt_tokens, fault)
    splits.check_left_out(tokenized.left_out, len(reading.problems), task.max_bad_rows)
    left_out = reading.left_out + tokenized.left_out
    members.append((rate, dataclasses.replace(tokenized, left_out=left_out)))
  return members
