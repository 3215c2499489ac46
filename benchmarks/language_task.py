"""Sums of seven signed digits, and the card that learns them: a task with many right answers.

  offpolicy-rl local --config=benchmarks/language_task.py

"4719352:11=" asks for these seven digits, each once, in any order, with + and - before them, so
that the value is 11: "9+4-7+1-3+5+2", say. A prompt has thousands of right answers (7! orders of a
few choices of signs), of 14 or 15 tokens each with the end of the sequence. The last signs decide
whether a sum is right, so a policy has to keep count.
"""

import json
import re

import numpy as np
from ml_collections import ConfigDict

from configs import base
from offpolicy_rl.tasks import catalog, sources, verifiers

NUMBERS = 7  # digits of a prompt, from 1 to 9
MAX_TARGET = 20
PROBLEMS = 16_000
_ANSWER = re.compile(r"-?[1-9](?:[+-][1-9])*")
_MODULE = "benchmarks.language_task"  # also where a file of this name is read as a card


def problems() -> list[sources.Problem]:
  """The same problems in the same order every time.

  The demonstration is one of a prompt's right answers: signs drawn among those that reach the
  target, then an order of the terms.
  """
  rng = np.random.default_rng(0)
  numbers = rng.integers(1, 10, (2 * PROBLEMS, NUMBERS))
  targets = np.abs(np.sum(numbers * rng.choice([-1, 1], numbers.shape), axis=1))
  kept = np.flatnonzero(targets <= MAX_TARGET)[:PROBLEMS]
  numbers, targets = numbers[kept], targets[kept]
  signs = 1 - 2 * (np.arange(2**NUMBERS)[:, None] >> np.arange(NUMBERS) & 1)
  right = numbers @ signs.T == targets[:, None]
  chosen = signs[np.argmax(right * rng.random(right.shape), axis=1)]
  terms = rng.permuted(numbers * chosen, axis=1)
  return [
    sources.Problem(
      question=f"{''.join(map(str, digits))}:{target}=",
      answer=json.dumps({"numbers": sorted(digits), "target": target}),
      demonstration="".join(f"{term:+d}" for term in row).removeprefix("+"),
    )
    for digits, target, row in zip(numbers.tolist(), targets.tolist(), terms.tolist(), strict=True)
  ]


@verifiers.verifier
def reaches_target(completion: str, answer: str) -> float:
  """1.0 if the completion is a sum of exactly the numbers whose value is the target, else 0.0."""
  if not _ANSWER.fullmatch(completion):
    return 0.0
  wanted = json.loads(answer)
  terms = [int(term) for term in re.findall(r"[+-]?\d", completion)]
  uses_numbers = sorted(map(abs, terms)) == wanted["numbers"]
  return float(uses_numbers and sum(terms) == wanted["target"])


@catalog.task
def signed_sums() -> catalog.Task:
  """One problem in eight is held out."""
  return catalog.Task("signed_sums", problems, f"{_MODULE}:{reaches_target.__name__}")


def get_config() -> ConfigDict:
  """The card: a fresh transformer of 0.34 M parameters, fixed lag, small steps.

  8 prompts x 8 completions per step; the objective, its values and the lag are the caller's.
  """
  c = base.get_config()
  c.task.name = f"{_MODULE}:{signed_sums.__name__}"
  c.task.max_prompt_tokens = NUMBERS + 4
  c.task.max_completion_tokens = 2 * NUMBERS + 1
  c.model.width, c.model.mlp_width = 128, 256
  c.model.num_heads = c.model.num_kv_heads = 8
  c.model.head_dim = 16
  c.warm_start.steps = 1500
  c.warm_start.learning_rate = 2e-3
  c.learner.prompts_per_step = c.learner.group_size = 8
  c.learner.steps = 1000
  c.learner.learning_rate, c.learner.warmup_steps = 3e-4, 20
  c.lag.mode = "fixed"
  c.evaluation.problems = 128
  c.sampler.slots = 64
  c.sampler.decode_steps = c.task.max_completion_tokens
  return c
