"""The prompts of a run: training and held-out ones, and the demonstrations of the former."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.replay import batching
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import stream

Members = list[tuple[float, list | stream.Streamed]]  # (rate, prompts) of each task


class Prompts(NamedTuple):
  """Tokenized prompts."""

  train: Members
  heldout: list  # in order of use
  counts: dict[str, int]  # metrics
  summary: str  # one line


def read(config: ConfigDict, policy: build.Policy) -> Prompts:
  """Reads all prompts of the configuration's tasks.

  Raises:
    TaskError: there are none.
  """
  selection = config_lib.selection(config).expanded()
  train, held = (data.examples(config, selection, policy, split) for split in data.SPLITS)
  for split, members in zip(data.SPLITS, (train, held), strict=True):
    data.require_some(config, split, [made for _, made in members])
  heldout = stream.interleaved([(rate, made.examples) for rate, made in held])
  count = lambda members, field: sum(len(getattr(made, field)) for _, made in members)
  counts = {
    "prompts": count(train, "examples"),
    "heldout_prompts": len(heldout),
    "prompts_too_long": count(train, "too_long"),
    "heldout_prompts_too_long": count(held, "too_long"),
    "prompts_left_out": count(train, "left_out"),
    "heldout_prompts_left_out": count(held, "left_out"),
  }
  examples = [(rate, made.prompts) for rate, made in train]
  return Prompts(examples, heldout, counts, data.summary(config.task.name, train, held))


def demonstrations(config: ConfigDict, train: Members) -> tuple[Callable[[int], types.Batch], str]:
  """Returns (function from a step of the warm start to its batch on the host, note or "").

  Leaves out demonstrations that are longer than a completion may be, which the note says, and
  problems and tasks without any, such as games.

  Raises:
    config_lib.ConfigError: there is none.
    ValueError: a task has none left.
  """
  most, rows = config.task.max_completion_tokens, config.warm_start.rows
  fits = lambda example: example.demonstration_tokens.size <= most
  kept, left_out = [], 0
  members = _with_demonstrations(train)
  if not members:
    raise config_lib.ConfigError(
      f"warm_start.steps: got {config.warm_start.steps}, expected 0: no problem of the task has a "
      "demonstration, and without one the policy would learn to say nothing"
    )
  for rate, examples in members:
    if isinstance(examples, stream.Streamed):
      kept.append((rate, examples.where(fits)))
      continue
    fitting = list(filter(fits, examples))
    kept.append((rate, fitting))
    left_out += len(examples) - len(fitting)
    if not fitting:
      raise ValueError(
        f"task.max_completion_tokens: got {most}, which none of the {len(examples)} demonstrations "
        f"(at rate {rate:g}) fits in; raise it, or set warm_start.steps=0"
      )
  note = f"warm start: {left_out} demonstrations of more than {most} tokens are left out"
  limits = build.limits(config, group_size=1)
  shown = stream.make_stream(kept, config.seed + 1)

  def batch(at_step: int) -> types.Batch:
    chosen = [shown[at_step * rows + i] for i in range(rows)]
    pairs = [(e.prompt_tokens, e.demonstration_tokens) for e in chosen]
    return batching.demonstration_batch(pairs, limits)

  return batch, note if left_out else ""


def _with_demonstrations(train: Members) -> Members:
  """The prompts that have some, of each task at rates that add up to 1."""
  said = lambda example: example.demonstration_tokens.size > 1  # besides the end of the turn
  chosen = lambda examples: (
    examples.where(said) if isinstance(examples, stream.Streamed) else list(filter(said, examples))
  )
  shown = [(rate, found) for rate, examples in train if (found := chosen(examples))]
  whole = 1.0 if len(shown) == len(train) else sum(rate for rate, _ in shown)
  return [(rate / whole, examples) for rate, examples in shown]
