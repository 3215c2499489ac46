"""The command `check`: reads all prompts, and says what a run would make of them."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from offpolicy_rl import config as config_lib
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import catalog, pool
from offpolicy_rl.tasks.rows import LeftOut

_WIDTH = 80  # columns
_SHOWN = 10  # rows of a kind
_LONGEST_NAME = 11  # that leaves room for what is counted
_QUANTILES = {"min": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


def run(config, say: Callable[[str], None] = print) -> None:
  """Reads every prompt of train and held-out, and tells.

  Raises:
    ConfigError: a run could not start.
  """
  selection = catalog.of(config.task)
  try:
    policy = data.policy_of(config)
    for task in selection.tasks:
      task.check()
    # All that is wrong is wanted, however much it is; it is judged below.
    lenient = [dataclasses.replace(task, max_bad_rows=1.0) for task in selection.tasks]
    found = data.look_through(config, dataclasses.replace(selection, tasks=tuple(lenient)), policy)
    for line in report(config, policy, found):
      say(line)
    selection.check()
  except (ValueError, pool.PoolError) as error:  # of the model's files, the problems, a verifier
    raise config_lib.ConfigError(str(error)) from None
  strict = {task.name: task for task in selection.tasks}
  data.require(config, [part._replace(task=strict[part.task.name]) for part in found])
  data.check_messages(config, policy)
  say("A run can start.")


def report(config, policy: build.Policy, found: Sequence[data.Part]) -> Iterator[str]:
  """Lines for a terminal or a file."""
  for task in dict.fromkeys(part.task.name for part in found):
    yield from _task(task, [part for part in found if part.task.name == task])
  yield ""
  yield from _lengths(config, found)
  yield ""
  for note in build.sampling_notes(config, policy):
    yield from textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
  name, size = data.largest_message(config, policy)
  told = f"largest message: {name}, {size / 2**20:.2g} of {config.transport.max_message_mb} MB"
  yield from textwrap.wrap(told, _WIDTH, subsequent_indent="  ")
  for part in found:
    yield from _not_used(part)


def _task(name: str, found: Sequence[data.Part]) -> Iterator[str]:
  yield f"task {name}, judged by {found[0].task.verifier.removeprefix('offpolicy_rl.tasks.')}"
  for part in found:
    reading, made = part.reading, part.made
    counts = {
      "can't be used": len(reading.left_out) + len(made.left_out),
      "too long": len(made.too_long),
      "repeated": len(reading.repeated),
      "held out": reading.held_out,
    }
    rows = sum(counts.values()) + len(made.examples)
    less = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    yield f"  {part.split:<8}{len(made.examples):>9,} prompts of {rows:,} rows{less}"


def _lengths(config, found: Sequence[data.Part]) -> Iterator[str]:
  """Quantiles of prompts, the too long ones too, and of demonstrations."""
  yield f"{'tokens':<28}" + "".join(f"{name:>8}" for name in _QUANTILES) + f"{'limit':>8}"
  for part in sorted(found, key=lambda part: part.task.name):
    who = part.split if len(found) == len(data.SPLITS) else f"{part.task.name}, {part.split}"
    label = f"  {who} "
    if len(who) > _LONGEST_NAME:
      yield label.rstrip()
      label = "    "
    made = part.made
    shown = [example.demonstration_tokens.size for example in made.examples]
    yield _row(f"{label}prompts", made.prompt_lengths, config.task.max_prompt_tokens)
    yield _row(f"{label}demonstrations", shown, config.task.max_completion_tokens)


def _row(label: str, lengths: list[int], limit: int) -> str:
  shown = ["-"] * len(_QUANTILES)
  if lengths:
    values = np.quantile(lengths, list(_QUANTILES.values()), method="nearest")
    shown = [f"{value:,}" for value in values]
  return f"{label:<28}" + "".join(f"{value:>8}" for value in shown) + f"{limit:>8,}"


def _not_used(part: data.Part) -> Iterator[str]:
  """What is not among the prompts, and what can't be judged, each with its place."""
  others = sum("another" in row.why for row in part.reading.repeated)
  for title, rows in (
    ("can't be used", part.reading.left_out + part.made.left_out),
    ("with answers that the verifier can't read", part.unreadable),
    (f"repeated, {others:,} of them with another answer", part.reading.repeated),
    ("too long", part.made.too_long),
  ):
    if rows:
      yield ""
      yield f"{part.task.name}, {part.split}: {len(rows):,} {title}"
      yield from map(_shown, rows[:_SHOWN])
      if len(rows) > _SHOWN:
        yield f"  ... and {len(rows) - _SHOWN:,} more"


def _shown(row: LeftOut) -> str:
  return f"  {row.where}: {row.why:.300}"
