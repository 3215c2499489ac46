"""Problems as a model reads them: token ids of prompts and demonstrations."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from offpolicy_rl.tasks import catalog, sources


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [T], ends as the model ends its turn
  answer: str  # JSON for the verifier


def tokenized(
  problems: Iterable[sources.Problem], words, max_prompt_tokens: int
) -> tuple[list[Example], int]:
  """(examples, number skipped because the prompt is too long).

  `words`: the policy's Vocabulary or Tokenizer.
  """
  examples, skipped = [], 0
  for problem in problems:
    prompt = words.prompt(problem.question)
    if len(prompt) > max_prompt_tokens:
      skipped += 1
      continue
    target = [*words.encode(problem.demonstration), words.turn_end]
    examples.append(Example(np.array(prompt, np.int32), np.array(target, np.int32), problem.answer))
  return examples, skipped


def members(
  selection: catalog.Selection, split: str, words, max_prompt_tokens: int
) -> tuple[list[tuple[float, list[Example]]], int]:
  """([(rate, examples) of each task], number skipped of all); arguments as for `tokenized`.

  How the members of a mixture interleave is `stream`'s affair.
  """
  made = [tokenized(part, words, max_prompt_tokens) for part in selection.split(split)]
  pairs = zip(selection.rates, made, strict=True)
  return [(rate, examples) for rate, (examples, _) in pairs], sum(skipped for _, skipped in made)
